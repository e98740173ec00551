"""Accelerators by name: what their vendors say of them, and devices to compile for."""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax import Device
from jax.experimental import topologies

from jaxrec.errors import ConfigError

GIB = 2**30
# libtpu would otherwise ask a cloud's metadata server for the TPU of this machine
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
TPU_HOST, GPU_HOST = 4, 8  # chips of a host; NVLink joins its GPUs


@dataclass(frozen=True)
class Chip:
    """What the vendor says of a chip. Rates are per second; those of links are one direction's."""

    platform: str  # of jax
    memory: float  # bytes
    flops: float  # of dense bfloat16 products
    bandwidth: float  # bytes to and from the memory
    interconnect: float  # bytes that it sends to the other chips of a slice, or of a GPU host
    source: str
    network: float = 0  # bytes that a GPU sends to other hosts
    # share of the memory that programs get: TPUs keep some for themselves, and JAX allocates three
    # quarters of a GPU's (XLA_PYTHON_CLIENT_MEM_FRACTION)
    usable: float = 0.98


TPU_PAGE = "https://cloud.google.com/tpu/docs/"
NVIDIA_PAGE = "https://www.nvidia.com/en-us/data-center/"
CHIPS = {
    "v5e": Chip("tpu", 16 * GIB, 197e12, 819e9, 200e9, f"{TPU_PAGE}v5e"),
    "v5p": Chip("tpu", 95 * GIB, 459e12, 2765e9, 600e9, f"{TPU_PAGE}v5p"),
    "v6e": Chip("tpu", 32 * GIB, 918e12, 1640e9, 400e9, f"{TPU_PAGE}v6e"),
    # of links to other hosts: one InfiniBand port a GPU, as in NVIDIA's DGX
    "a100": Chip("gpu", 80 * GIB, 312e12, 2039e9, 300e9, f"{NVIDIA_PAGE}a100/", 25e9, 0.75),
    "h100": Chip("gpu", 80 * GIB, 989e12, 3350e9, 450e9, f"{NVIDIA_PAGE}h100/", 50e9, 0.75),
    "h200": Chip("gpu", 141 * GIB, 989e12, 4800e9, 450e9, f"{NVIDIA_PAGE}h200/", 50e9, 0.75),
}
CHIPS["gpu"] = CHIPS["h100"]


@dataclass(frozen=True)
class Slice:
    """Chips of one kind that compute together."""

    name: str  # such as v5e:4x4 or h100:8
    chip: Chip
    size: int  # number of chips

    @property
    def host(self) -> "Slice":
        """The chips of one host, which one process of a training has."""
        kind, _, shape = self.name.partition(":")
        size = GPU_HOST if self.chip.platform == "gpu" else TPU_HOST
        if self.size <= size:
            return self
        edges = ["2", "2", *["1"] * (shape.count("x") - 1)] if "x" in shape else [str(size)]
        return Slice(f"{kind}:{'x'.join(edges)}", self.chip, size)

    @property
    def interconnect(self) -> float:
        """Bytes per second that a chip sends to the others."""
        many_hosts = self.chip.platform == "gpu" and self.size > GPU_HOST
        return self.chip.network if many_hosts else self.chip.interconnect


def read_slice(name: str) -> Slice:
    """The slice of a name; raises a ConfigError if there is none."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ConfigError(f"slice {name!r}: the chips are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    form, example = (r"\d+(x\d+)+", "4x4") if chip.platform == "tpu" else (r"\d+", "8")
    if not re.fullmatch(form, shape) or not (size := math.prod(map(int, shape.split("x")))):
        raise ConfigError(f"slice {name!r}: write the shape as in {kind}:{example}")
    return Slice(name, chip, size)


def ask_for_devices(slices: Sequence[Slice]) -> None:
    """Give this process CPU devices that stand for others; call it before JAX starts."""
    os.environ |= NO_TPU | os.environ
    with contextlib.suppress(RuntimeError):  # JAX has started; `devices_of` counts its devices
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(part.size for part in slices))


def devices_of(part: Slice) -> list[Device]:
    """Devices to compile for: those of a TPU that need not be here, or CPUs that stand for GPUs.

    Raises:
        ConfigError: the TPU compiler is not installed, it knows no such slice, or this process has
            too few CPU devices.
    """
    if part.chip.platform == "gpu":
        return stand_ins(part)
    if find_spec("libtpu") is None:
        raise ConfigError(
            f"{part.name}: the TPU compiler is not installed; pip install 'jaxrec[tpu]' "
            "(no TPU is needed)"
        )
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=part.name)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"{part.name}: the TPU compiler has no such slice: {error}") from error
    return list(topology.devices)


def stand_ins(part: Slice) -> list[Device]:
    """As many CPU devices; raises a ConfigError if this process has too few."""
    devices = jax.devices("cpu")
    if len(devices) < part.size:
        raise ConfigError(
            f"{part.name} needs {part.size} CPU devices, and JAX has started with {len(devices)}; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={part.size}"
        )
    return devices[: part.size]
