import jax
import numpy as np
import pytest

from jaxrec import processes
from jaxrec.errors import ConfigError, RunError


def test_a_single_process_does_everything_itself():
    assert processes.is_first()
    result = object()
    assert processes.from_first(lambda: result) is result
    rows = np.arange(5)
    assert processes.share(5) == slice(0, 5)
    assert processes.gathered(rows, 5) is rows
    assert [processes.any_of(value) for value in (True, False)] == [True, False]


@pytest.mark.parametrize(
    ("error", "expected", "fix"),
    [
        (ValueError("coordinator_address should be defined."), ConfigError, "--coordinator HOST"),
        (RuntimeError("Kubernetes API Error: 403"), RunError, "403.*all of them start"),
    ],
)
def test_processes_that_find_no_cluster_say_what_to_give(monkeypatch, error, expected, fix):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(expected, match=fix):
        processes.join()
