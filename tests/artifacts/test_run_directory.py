import json

import pytest

from jaxrec.artifacts.run_directory import FORMAT, Progress, read_artifacts, read_config
from jaxrec.errors import RunError


@pytest.mark.parametrize("read", [read_config, read_artifacts])
def test_an_older_run_is_refused_by_its_format_and_not_by_its_options(tmp_path, read):
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "layout.json").write_text(json.dumps({"format": FORMAT - 1}))
    (tmp_path / "config.yaml").write_text("model: {an_old_name: 8}")
    with pytest.raises(RunError, match=f"has format {FORMAT - 1}; this version reads"):
        read(tmp_path)


def test_the_last_of_equal_epochs_is_the_best():
    history = tuple({"ndcg@10": score} for score in (0.1, 0.3, 0.3, 0.2))
    assert Progress().epochs_since_best == 0
    assert Progress(4, 0, history).epochs_since_best == 1
