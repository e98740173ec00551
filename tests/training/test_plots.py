from jaxrec.training.plots import plot_training

PNG = b"\x89PNG"


def test_a_run_writes_its_plot(whole_run):
    assert (whole_run / "training.png").read_bytes().startswith(PNG)


def test_a_plot_of_one_step_without_validation_is_drawn(tmp_path):
    plot_training(tmp_path / "training.png", [{"step": 1, "loss": 0.5}])
    assert (tmp_path / "training.png").read_bytes().startswith(PNG)
