"""What is installed: known vulnerabilities, and a bill of materials."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def needs(module):
    installed = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not installed, reason="needs `pip install -e '.[audit]'`")


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


@needs("cyclonedx_py")
def test_a_bill_of_materials_names_what_jaxrec_needs(tmp_path):
    path = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-file", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    parts = {
        part["name"].lower(): part["version"] for part in json.loads(path.read_text())["components"]
    }
    assert parts.keys() >= {"jax", "flax", "optax", "jraph", "orbax-checkpoint", "polars"}
