import os

import nbformat
import pytest
from helpers.paths import ROOT
from nbclient import NotebookClient

NOTEBOOKS = ROOT / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["walkthrough"])
def test_a_notebook_runs_from_its_first_cell_to_its_last(name, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
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
