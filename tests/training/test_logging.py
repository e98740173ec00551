import numpy as np

from jaxrec.evaluation.reliability import reliability
from jaxrec.training.logging import RunLog, draw_plots, read_log


def test_a_run_writes_events_for_tensorboard(whole_run):
    assert list((whole_run / "tensorboard").glob("events*"))


def test_a_resumed_log_drops_a_cut_line_and_the_steps_after_its_checkpoint(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 0.5 * step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
    with RunLog(tmp_path, 1) as log:
        log.write(2, {"loss": 7.0})
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 7.0}]


def test_a_plot_that_cannot_be_drawn_is_a_note(tmp_path, capsys):
    """With one item that everybody has seen, all probabilities are 0."""
    nothing = reliability(np.zeros((3, 1)), np.zeros((3, 1), bool))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    draw_plots(tmp_path, nothing)
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("note: reliability.png is not drawn: all probabilities are 0")
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "training.png"}
    (tmp_path / "log.jsonl").write_text('{"loss": 0.5}\n')
    draw_plots(tmp_path, nothing)
    assert "training.png is not drawn" in capsys.readouterr().err
