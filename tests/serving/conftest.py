"""The trained model, and commands on its run."""

import pytest

from jaxrec.cli import main, scripts
from jaxrec.inference import loading


@pytest.fixture(scope="module")
def model(trained_run):
    return loading.load(trained_run)


@pytest.fixture(scope="module")
def events_file(known_shop, tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "events.parquet"
    known_shop.events.write_parquet(path)
    return path


@pytest.fixture
def serve(trained_run, events_file):
    def command(*arguments, events=events_file):
        scripts.serve([str(trained_run), "--events", str(events), *map(str, arguments)])

    return command


@pytest.fixture
def ask(trained_run, events_file):
    """Another command with the same run and events."""

    def command(name, *arguments):
        main([name, str(trained_run), *map(str, arguments), "--events", str(events_file)])

    return command


@pytest.fixture
def refused(capsys):
    def message(command, *arguments, **options):
        with pytest.raises(SystemExit) as stop:
            command(*arguments, **options)
        assert stop.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return message
