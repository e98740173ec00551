import pytest

from jaxrec.config import (
    DataConfig,
)
from jaxrec.errors import ConfigError


def test_an_event_type_is_weighted_or_negative_but_not_both():
    with pytest.raises(ConfigError, match="return is among negative_event_types"):
        DataConfig(event_weights={"return": 2.0})
    with pytest.raises(ConfigError, match="buy must be 0 or more"):
        DataConfig(event_weights={"buy": -1.0})
    assert DataConfig(event_weights={"return": 0.0}).event_weights == {"return": 0.0}
