import doctest
import os
import re

import nbformat
import pytest
from helpers.paths import ROOT
from nbclient import NotebookClient

from jaxrec import api
from jaxrec.inference import loading

PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_notebook_and_the_pages_about_movielens_run(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "walkthrough.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}})
    # as its reader runs it: on one device, with programs that are optimised
    client.execute(env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"})
    assert not [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    shown = notebook.cells[-1]["outputs"][0]["data"]
    assert "image/png" in shown

    monkeypatch.chdir(tmp_path)  # the notebook has trained `runs/ml-100k`
    for page in (ROOT / "README.md", ROOT / "docs" / "tutorials" / "movielens.md"):
        names = {"__name__": "page"}
        for block in PYTHON.findall(page.read_text()):
            exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize(
    "entry", [api.configure, pytest.param(api.fit, marks=pytest.mark.slow), loading.load]
)
def test_the_example_of_an_entry_point_runs(entry, known_shop, trained_run, tmp_path, monkeypatch):
    """In a directory with the run `runs/shop`, and with the shop's events as `events`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shop").symlink_to(trained_run)
    [example] = doctest.DocTestFinder(recurse=False).find(
        entry, globs={"events": known_shop.events}
    )
    report: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert results.attempted
    assert not results.failed, "".join(report)
