"""Train one of the compared systems in an environment of its own.

    python benchmarks/peers/run.py "RecTools SASRec" --python python3.11 --data FOLDER SIZES

FOLDER is what `export.py` wrote, SIZES are the options of `protocol.py`. The first call for a
system installs its packages, which need Python 3.11, into a folder of `--environments`. All systems
keep freed memory, as `python train.py` does. The system prints a line `RESULT {...}` after every
epoch; `protocol.py` documents its fields.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jaxrec.runtime import KEEP_FREED_MEMORY, cache_dir

PEERS = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A script in this folder, and the groups of packages to install for it, in this order."""

    script: str
    arguments: tuple[str, ...] = ()
    environment: str = ""  # empty: the environment of jaxrec
    packages: tuple[tuple[str, ...], ...] = ()


RECTOOLS = (("torch==2.13.0", "rectools[torch]==0.19.0"),)
RECBOLE = (
    ("torch==2.13.0",),
    ("numpy<2", "pandas<2.2", "scipy<1.12", "recbole==1.2.1", "setuptools<80"),
)
KERAS = (("jax==0.6.*", "keras>=3"),)
SYSTEMS = {
    "jaxrec": System("jaxrec_lstm.py"),
    "Keras GRU on JAX": System("keras_gru.py", (), "kjax", KERAS),
    "RecTools SASRec": System("rectools_sasrec.py", ("sasrec",), "rectools", RECTOOLS),
    "RecTools eSASRec": System("rectools_sasrec.py", ("esasrec",), "rectools", RECTOOLS),
    "RecBole GRU4Rec": System("recbole_gru4rec.py", (), "recbole", RECBOLE),
}


def main() -> None:
    """Run the script of one system in its environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=SYSTEMS, metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="creates the environments")
    options, arguments = parser.parse_known_args()
    system = SYSTEMS[options.system]
    python = python_of(system, options.environments, options.python)
    command = [str(python), str(PEERS / system.script), *arguments, *system.arguments]
    sys.exit(subprocess.run(command, env=os.environ | KEEP_FREED_MEMORY).returncode)


def python_of(system: System, environments: Path, python: str) -> Path:
    """The Python of a system's environment, which is created if it does not exist."""
    if not system.environment:
        return Path(sys.executable)
    folder = environments / system.environment
    own_python = folder / "bin" / "python"
    if not own_python.exists():
        print(f"installing the packages of {system.script} into {folder}", file=sys.stderr)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        for packages in system.packages:
            subprocess.run([str(own_python), "-m", "pip", "install", "-q", *packages], check=True)
    return own_python


if __name__ == "__main__":
    main()
