"""MkDocs hooks: three reference pages are generated from the code when the site is built."""

import command_line
import http_api
import options
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

GENERATED = {
    "reference/options.md": options.page,
    "reference/command-line.md": command_line.page,
    "reference/http-api.md": http_api.page,
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site; nothing is written beside the sources."""
    for path, page in GENERATED.items():
        files.append(File.generated(config, path, content=page()))
    return files
