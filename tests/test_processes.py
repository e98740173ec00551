import os
import socket
import subprocess
import sys
from contextlib import suppress

import jax
import numpy as np
import pytest
from helpers import pods

from jaxrec import processes
from jaxrec.errors import ConfigError, RunError

FIRST_PORT = 2**16 - 2**12  # of those that JAX chooses from


def test_a_single_process_does_everything_itself():
    assert processes.is_first()
    result = object()
    assert processes.from_first(lambda: result) is result
    rows = np.arange(5)
    assert processes.share(5) == slice(0, 5)
    assert processes.gathered(rows, 5) is rows
    assert [processes.any_of(value) for value in (True, False)] == [True, False]


@pytest.mark.parametrize(
    ("error", "expected", "fix"),
    [
        (ValueError("coordinator_address should be defined."), ConfigError, "--coordinator HOST"),
        (RuntimeError("Kubernetes API Error: 403"), RunError, "403.*all of them start"),
    ],
)
def test_processes_that_find_no_cluster_say_what_to_give(monkeypatch, error, expected, fix):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(expected, match=fix):
        processes.join()


def ompi(job, number):
    """What `mpirun` tells each of two processes of a job."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
    }


def slurm(job, number):
    """What `srun` tells each of two processes of a job."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def free_job():
    """The number of a job whose port, as JAX derives it, is free."""
    for job in range(os.getpid() % 4096, 4096):
        with suppress(OSError), socket.socket() as server:
            server.bind(("localhost", FIRST_PORT + job))
            return job
    raise AssertionError("no port is free")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [ompi, slurm])
def test_processes_of_a_cluster_find_each_other(cluster, tmp_path):
    """The second one reports an error that only the first one has met."""
    run, job = tmp_path / "run", free_job()
    run.mkdir()
    command = [sys.executable, "-m", "jaxrec", "train", "--distributed", "--run", str(run)]
    started = [
        subprocess.Popen(
            [*command, "--data", "nowhere"],
            env=pods.with_devices(1) | cluster(job, number),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    first, second = (process.communicate(timeout=pods.HANGS)[1] for process in started)
    assert [process.returncode for process in started] == [2, 2]
    assert "exists; continue it with --resume" in first
    assert f"the first process: {run}" in second
