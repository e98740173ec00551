"""A PostgreSQL server for tests, as another user where root runs them."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), *map(str, INSTALLED)])
USER = "postgres"  # the server package creates this user; PostgreSQL refuses root


class PostgresServer:
    """A server in a directory of its own, with a database `postgres` of the user `shop`."""

    def __init__(self):
        if any(self._program(name) is None for name in ("initdb", "pg_ctl")):
            pytest.skip("needs a PostgreSQL server (Debian: postgresql)")
        pytest.importorskip("adbc_driver_postgresql")
        self.directory = Path(tempfile.mkdtemp(prefix="jaxrec-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self.directory, USER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://shop@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "--username=shop", "--auth=trust", "--encoding=UTF8", "--no-sync")
        options = f"-p {self.port} -k {self.directory} -c fsync=off -c listen_addresses=127.0.0.1"
        self._run("pg_ctl", "start", "-w", "-o", options, "-l", str(self.directory / "log"))

    def stop(self):
        self._run("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(self.directory)

    def _program(self, name):
        return shutil.which(name, path=FOLDERS)

    def _run(self, name, *arguments):
        command = [self._program(name), "-D", str(self.directory / "data"), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60)
