"""What a training costs: wall-clock time and, where the machine counts it, energy."""

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")  # RAPL in Linux, which on most machines only root may read
# a counter of RAPL starts again after 2.6e5 joules, some ten minutes of a large processor
SAMPLE_SECONDS = 10.0
NAMED = ("package", "dram")  # the other zones of RAPL are parts of these, or hold them
JOULES_PER_KWH = 3.6e6


class Meter:
    """Seconds since it was made, and joules of the machine, whatever program used them.

    Attributes:
        counters: name -> joules that a counter shows, and where it starts again.
        earlier: seconds and joules of the processes that trained the same run before.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.counters = read_counters()
        self.joules = 0.0
        self.earlier: Mapping[str, float] = {"seconds": 0.0, "joules": 0.0}
        self.lock = threading.Lock()

    def go_on(self, log: Sequence[Mapping[str, float]]) -> None:
        """Add what earlier processes spent, which the last row of their log tells."""
        if log:
            self.earlier = {name: log[-1][name] for name in self.earlier if name in log[-1]}

    def sample(self) -> None:
        """Add the joules since the last sample."""
        with self.lock:
            now = read_counters()
            for name in now.keys() & self.counters.keys():
                joules, end = now[name]
                self.joules += (joules - self.counters[name][0]) % end
            self.counters = now

    def cost(self) -> dict[str, float]:
        """`seconds` and, if the machine counts them, `joules` up to the last sample."""
        cost = {"seconds": time.perf_counter() - self.start}
        if self.counters:
            cost["joules"] = self.joules
        return {
            name: round(value + self.earlier[name], 3)
            for name, value in cost.items()
            if name in self.earlier
        }


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter that samples the counters while the block runs."""
    meter, ended = Meter(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            meter.sample()

    if meter.counters:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield meter
    finally:
        ended.set()


def read_counters() -> dict[str, tuple[float, float]]:
    """Name -> joules and the joules at which the counter starts again, of all readable counters."""
    return _of_processors() | _of_gpus()


def _of_processors() -> dict[str, tuple[float, float]]:
    counters = {}
    for zone in POWERCAP.glob("intel-rapl:*"):  # those of AMD have this name too
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith(NAMED):
                files = (zone / "energy_uj", zone / "max_energy_range_uj")
                joules, end = (int(file.read_text()) / 1e6 for file in files)
                counters[f"{name} ({zone.name})"] = (joules, end)
        except (OSError, ValueError):
            continue
    return counters


def _of_gpus() -> dict[str, tuple[float, float]]:
    try:
        import pynvml
    except ImportError:
        return {}
    counters = {}
    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
            millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
            counters[f"GPU {number}"] = (millijoules / 1e3, math.inf)
    except pynvml.NVMLError:
        pass
    return counters
