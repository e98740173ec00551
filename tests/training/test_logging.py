from jaxrec.training.logging import RunLog, read_log


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
