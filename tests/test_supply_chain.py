"""What is installed, and what files can make a process run: no pickle anywhere."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxrec.cli import main

CODE = ("jaxrec", "benchmarks", "examples", "docs/generate", "train.py", "serve.py")
UNSAFE = re.compile(
    r"(import|from) (cloudpickle|dill|joblib|marshal|pickle|shelve)\b|pickle\.loads?\("
    r"|joblib\.|torch\.load|allow_pickle\s*=\s*True|read_pickle"
)
PICKLED = {".pickle", ".pkl", ".joblib", ".pt", ".pth", ".bin"}


def needs(module):
    installed = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not installed, reason="needs `pip install -e '.[audit]'`")


def test_no_code_reads_a_pickle():
    found = []
    for place in CODE:
        path = ROOT / place
        for file in [path] if path.is_file() else path.rglob("*.py"):
            found += [f"{file}: {match[0]}" for match in UNSAFE.finditer(file.read_text())]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "load(f, allow_pickle=True)",
    ],
)
def test_the_search_finds_pickles(line):
    assert UNSAFE.search(line)
    assert not UNSAFE.search("np.load(path, allow_pickle=False)  # no pickle")


@pytest.mark.thorough
def test_arrays_of_runs_states_and_exports_hold_no_pickle(trained_run, known_shop, tmp_path):
    events = tmp_path / "events.parquet"
    known_shop.events.write_parquet(events)
    places = {name: str(tmp_path / name) for name in ("lists", "states", "export")}
    scored = ["--events", str(events), "--out", places["lists"], "--states", places["states"]]
    main(["recommend", str(trained_run), *scored, "--quiet"])
    main(["export", str(trained_run), "--to", places["export"], "--formats", "jax"])
    arrays = set()
    for place in (trained_run, tmp_path):
        for path in place.rglob("*"):
            assert path.suffix not in PICKLED, path
            if path.suffix in (".npy", ".npz"):
                loaded = np.load(path, allow_pickle=False)
                for array in loaded.values() if path.suffix == ".npz" else [loaded]:
                    assert array.dtype != object
                arrays.add(path.name)
    assert arrays >= {"counts.npy", "has_trained_id.npy", "whitening.npz", "item_vectors.npy"}


@pytest.mark.slow
@needs("pip_audit")
def test_no_installed_package_has_a_known_vulnerability():
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    audit = subprocess.run(command, capture_output=True, text=True)
    if not audit.stdout:
        pytest.skip(f"pip-audit found no service: {audit.stderr[-300:]}")
    packages = json.loads(audit.stdout)["dependencies"]
    known = [package for package in packages if "vulns" in package]
    if not known:
        pytest.skip("the package index tells of no vulnerabilities")
    assert not {package["name"]: package["vulns"] for package in known if package["vulns"]}


def names(requirements):
    """The packages of requirements that hold in this environment, without jaxrec itself."""
    parsed = map(Requirement, requirements)
    held = {canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate()}
    return held - {"jaxrec"}


def is_installed(package):
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def needed_packages():
    """What jaxrec needs, and the packages of the extras whose packages are all installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = map(names, project["optional-dependencies"].values())
    installed = [extra for extra in extras if all(map(is_installed, extra))]
    return names(project["dependencies"]).union(*installed)


def test_needed_packages_are_those_of_installed_extras(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "is_installed", lambda package: package != "redis")
    packages = needed_packages()
    assert packages >= {"jax", "duckdb", "pyyaml", "fastapi", "ray", "flatbuffers", "jax-privacy"}
    assert not packages & {"redis", "jaxrec"}


@pytest.mark.slow
@needs("cyclonedx_py")
def test_a_bill_of_materials_names_what_jaxrec_needs(tmp_path):
    path = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-file", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    parts = {
        canonicalize_name(part["name"]): part["version"]
        for part in json.loads(path.read_text())["components"]
    }
    assert not needed_packages() - parts.keys()
    assert all(parts[package] for package in needed_packages())
