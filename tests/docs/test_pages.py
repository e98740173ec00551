import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.shop import HELD_OUT

from jaxrec import cli, processes
from jaxrec.config import parsing

DOCS = ROOT / "docs"
BLOCK = re.compile(r"<!-- run -->\n\n```(python|bash)\n(.*?)```", re.DOTALL)
PAGES = sorted(page for page in DOCS.rglob("*.md") if "<!-- run -->" in page.read_text())
EXTERNAL = re.compile(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")


@pytest.fixture
def workspace(shop, trained_run, tmp_path, monkeypatch):
    """The directory that the pages speak of: a shop, two runs and a file of new items."""
    (tmp_path / "my-shop").mkdir()
    shop.events.write_parquet(tmp_path / "my-shop" / "events.parquet")
    shop.items.write_parquet(tmp_path / "my-shop" / "items.parquet")
    new = shop.items.filter(shop.items["item_id"] == HELD_OUT)
    new.write_parquet(tmp_path / "new_items.parquet")
    for run in ("shop", "shop-v2"):
        shutil.copytree(trained_run, tmp_path / "runs" / run)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_marked_block_is_found():
    for page in PAGES:
        text = page.read_text()
        assert len(BLOCK.findall(text)) == text.count("<!-- run -->"), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_blocks_of_a_page_run_one_after_another(page, workspace):
    names = {"__name__": "page"}
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(block, str(page), "exec"), names)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "jaxrec"
            cli.main(arguments)


class Parsed(BaseException):
    """Ends a command as soon as its options are read."""


def commands(page):
    """The arguments of the lines of a page that begin with `jaxrec`."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r" && .*| --from \S+", "", line)  # there is no such run
            if line.startswith("jaxrec ") and "--model.sequence mgu" not in line:  # a reader's own
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name
)
def test_the_commands_of_a_page_have_options_that_exist(page, monkeypatch):
    read = parsing.tyro.cli

    def parse_and_stop(*arguments, **options):
        read(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(parsing.tyro, "cli", parse_and_stop)
    monkeypatch.setattr(processes, "join", lambda *place: None)
    monkeypatch.chdir(ROOT)
    for arguments in commands(page):
        with pytest.raises(Parsed):
            cli.main(arguments)


def test_the_readme_is_read_in_two_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_readme_has_the_two_commands_and_ci_runs_the_tests_as_it_says():
    train = "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python train.py"
    test = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"
    readme = (ROOT / "README.md").read_text()
    assert f"```\n{train}\n```" in readme
    assert f"```\n{test}\n```" in readme
    ci = (ROOT / ".ci" / "run").read_text().replace("--quiet ", "").replace("--editable", "-e")
    for step in test.split(" && "):
        assert step in ci


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_reads_offline(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not EXTERNAL.findall(page.read_text()), page
    commands = (tmp_path / "reference" / "command-line" / "index.html").read_text()
    for command in cli.COMMANDS:
        assert f"jaxrec {command}" in commands
