"""Writes a model for devices that recommend without a server."""

from jaxrec.inference.edge.directory import write_directory
from jaxrec.serving.console import console
from jaxrec.serving.inputs import load_model
from jaxrec.serving.options import ExportOptions


def export(options: ExportOptions) -> None:
    """Write the directory that `jaxrec export` names; raises as `write_directory`."""
    model = load_model(options)
    write_directory(
        model, options.to, options.formats, options.item_precision, options.page_runtime
    )
    size = sum(file.stat().st_size for file in options.to.rglob("*") if file.is_file())
    console.print(f"written to {options.to}: {size / 1e6:.1f} MB")
