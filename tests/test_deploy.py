"""The files of `deploy/`: what they name exists, and the tools that read them accept them."""

import re
import shutil
import subprocess

import pytest
import yaml
from helpers.paths import ROOT

from jaxrec.cli import main

DEPLOY = ROOT / "deploy"


def options_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


@pytest.mark.parametrize("name", ["jaxrec.service", "Containerfile"])
def test_commands_have_known_options(name, capsys):
    text = (DEPLOY / name).read_text()
    [command] = re.findall(r"^(?:ExecStart|ENTRYPOINT).*$", text, re.MULTILINE)
    used = set(re.findall(r"--[a-z-]+", command))
    assert used
    assert used <= options_of("serve", capsys)


def test_rules_name_metrics_of_the_service(client_metrics):
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
    named = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in re.findall(r"jaxrec_[a-z_]+", rule["expr"])
    }
    assert named
    assert named <= client_metrics


@pytest.fixture
def client_metrics():
    metrics = pytest.importorskip("jaxrec.serving.http.metrics").Metrics()
    metrics.request_seconds.labels("GET", "/", "200").observe(0.1)
    for name in ("events", "lists"):
        metrics.total(f"waiting_{name}", "")
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {sample.name for sample in samples}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / "jaxrec.service"
    program = shutil.which("true")
    text = (DEPLOY / "jaxrec.service").read_text()
    unit.write_text(text.replace("/opt/jaxrec/.venv/bin/jaxrec", program))
    checked = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60
    )
    assert "jaxrec.service" not in checked.stderr, checked.stderr


@pytest.mark.slow
def test_the_container_is_built():
    builder = shutil.which("podman") or shutil.which("docker")
    if not builder or subprocess.run([builder, "info"], capture_output=True).returncode:
        pytest.skip("needs podman or docker")
    subprocess.run([builder, "build", "-f", DEPLOY / "Containerfile", ROOT], check=True)
