"""The page that shows one user live: one file, whose own script is the only one that may run."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "web" / "index.html").read_text(encoding="utf-8")


def content_policy(page: str, image_hosts: Sequence[str] = ()) -> str:
    """The Content-Security-Policy that allows the inline script and style of a page alone.

    Images come from the same origin or from `image_hosts`.
    """
    images = " ".join(("'self'", "data:", *image_hosts))
    hashes = {
        tag: " ".join(
            f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        f"connect-src 'self'; img-src {images}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
