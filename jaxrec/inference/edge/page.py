"""A page that runs an exported model in the browser, by ONNX Runtime Web."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

from jaxrec.errors import ConfigError, FetchError
from jaxrec.runtime import atomic_path, cache_dir

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE_FILES = ("index.html", "page.css", "page.js", "model.js")
RUNTIME = "ort"  # the directory of the runtime beside the page


def write_page(directory: Path, runtime: Path | None = None) -> None:
    """Write the page and the runtime beside the programs of an exported model.

    Args:
        runtime: directory with the files of ONNX Runtime Web; None: from npm, or the cache.

    Raises:
        ConfigError: a file of the runtime is missing.
        FetchError: npm cannot download the runtime, or it is not the expected one.
    """
    source = runtime or fetch_runtime()
    missing = [name for name in RUNTIME_FILES if not (source / name).is_file()]
    if missing:
        raise ConfigError(
            f"{source} lacks {', '.join(missing)}; give the directory `dist` of the npm package "
            f"{PACKAGE.split('@')[0]}"
        )
    web = files("jaxrec.inference.edge") / "web"
    for name in PAGE_FILES:
        (directory / name).write_bytes((web / name).read_bytes())
    (directory / RUNTIME).mkdir()
    for name in RUNTIME_FILES:
        shutil.copyfile(source / name, directory / RUNTIME / name)


def fetch_runtime() -> Path:
    """Directory with the files of ONNX Runtime Web, from the cache or from npm's registry."""
    target = cache_dir() / PACKAGE.replace("@", "-")
    if target.is_dir():
        return target
    with (
        tempfile.TemporaryDirectory() as scratch,
        tarfile.open(_download(Path(scratch))) as package,
        atomic_path(target) as draft,
    ):
        draft.mkdir()
        for name in RUNTIME_FILES:
            content = package.extractfile(f"package/dist/{name}")
            assert content is not None
            (draft / name).write_bytes(content.read())
    return target


def _download(directory: Path) -> Path:
    advice = "or name the directory `dist` of the package by --page-runtime"
    command = ["npm", "pack", "--silent", "--pack-destination", str(directory), PACKAGE]
    try:
        npm = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise FetchError(
            f"the page needs {PACKAGE} from npm, which is not installed; install it, {advice}"
        ) from None
    packages = list(directory.glob("*.tgz"))
    if npm.returncode or not packages:
        reason = (npm.stderr.strip() or "npm gave no package").splitlines()[0]
        raise FetchError(f"cannot download {PACKAGE}: {reason}. Connect to the registry, {advice}")
    digest = base64.b64encode(hashlib.sha512(packages[0].read_bytes()).digest()).decode()
    if digest != SHA512:
        raise FetchError(
            f"checksum mismatch: {PACKAGE} has sha512 {digest}, expected {SHA512}. The file was "
            "deleted: check the registry of npm and try again."
        )
    return packages[0]
