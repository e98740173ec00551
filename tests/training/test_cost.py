"""Wall-clock time and energy of a training, with counters in place of those of a machine."""

import sys
import time
from types import SimpleNamespace

import pytest

from jaxrec.training import cost


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """Sets the microjoules of a zone of RAPL."""
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def set_zone(zone, name, microjoules):
        (tmp_path / zone).mkdir(exist_ok=True)
        for file, text in {
            "name": name,
            "energy_uj": microjoules,
            "max_energy_range_uj": 1000e6,
        }.items():
            number = text if isinstance(text, str) else str(int(text))
            (tmp_path / zone / file).write_text(f"{number}\n")

    return set_zone


def test_joules_are_those_of_packages_and_memory_also_when_a_counter_starts_again(zones, tmp_path):
    zones("intel-rapl:0", "package-0", 990e6)
    zones("intel-rapl:0:0", "core", 0)  # a part of the package
    zones("intel-rapl:0:1", "dram", 5e6)
    zones("intel-rapl:1", "psys", 0)  # holds the package
    meter = cost.Meter()
    zones("intel-rapl:0", "package-0", 20e6)
    zones("intel-rapl:0:0", "core", 10e6)
    zones("intel-rapl:0:1", "dram", 7e6)
    zones("intel-rapl:1", "psys", 40e6)
    assert meter.cost()["joules"] == 0
    meter.sample()
    assert meter.cost()["joules"] == pytest.approx(30 + 2)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("denied")
    meter.sample()
    assert meter.counters.keys() == {"dram (intel-rapl:0:1)"}


def test_gpus_count_millijoules(zones, monkeypatch):
    class NVMLError(Exception):
        pass

    joules = {0: 1000, 1: 500}
    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetTotalEnergyConsumption=joules.get,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter = cost.Meter()
    joules[1] = 2500
    meter.sample()
    assert meter.cost()["joules"] == 2

    def refuse(_):
        raise NVMLError

    library.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert cost.Meter().cost().keys() == {"seconds"}


def test_earlier_processes_count_and_one_without_counters_leaves_the_energy_open(zones):
    zones("intel-rapl:0", "package-0", 0)
    meter = cost.Meter()
    meter.go_on([{"step": 1, "seconds": 5.0, "joules": 1.0}, {"seconds": 100.0, "joules": 7.0}])
    assert 100 <= meter.cost()["seconds"] < 130
    assert meter.cost()["joules"] == 7
    meter.go_on([])
    assert meter.cost()["joules"] == 7
    meter.go_on([{"seconds": 100.0}])
    assert meter.cost().keys() == {"seconds"}
    meter.go_on([{"step": 1}])  # of a version that did not measure
    assert not meter.cost()


def test_a_meter_samples_while_a_block_runs(monkeypatch):
    shown = [0.0]
    monkeypatch.setattr(cost, "SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(cost, "read_counters", lambda: {"package-0": (shown[0], 1000.0)})
    with cost.metered() as meter:
        for joules in (400.0, 800.0, 200.0):  # more than the counter holds
            shown[0] = joules
            until = time.monotonic() + 60
            while meter.counters["package-0"][0] != joules and time.monotonic() < until:
                time.sleep(0.01)
    assert meter.cost()["joules"] == pytest.approx(1200)
