"""A PostgreSQL cluster of our own, on a socket in a temporary folder; ended by whoever made it."""

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
from peer_tools import needed

INSTALLED = "/usr/lib/postgresql/*/bin"


def binaries():
    """Return the folder of PostgreSQL's programs, or skip (fail where peers are required)."""
    newest_first = sorted(map(str, Path("/").glob(INSTALLED[1:])), reverse=True)
    found = needed("initdb", "apt-get install postgresql", beside=":".join(newest_first))
    return Path(found).parent


class Cluster:
    """One server; `durable` as it would be in a hospital, else fast and forgetful."""

    def __init__(self, durable=False):
        self._bin = binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="dicom-node-pg-", dir="/tmp"))
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user, self._user)
        self.name = self._user or os.environ.get("USER", "postgres")
        self._data = self.folder / "data"
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", self.name, "-E", "UTF8",
                  "--locale=C.UTF-8", *([] if durable else ["-N"]))  # fmt: skip
        self._options = f"-c listen_addresses= -c unix_socket_directories={self.folder}" + (
            "" if durable else " -c fsync=off -c full_page_writes=off"
        )
        self.start()

    def start(self):
        self._run("pg_ctl", "-D", self._data, "-w", "-o", self._options,
                  "-l", self.folder / "log", "start")  # fmt: skip

    def stop(self):
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def close(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self):
        """Return the URL of an empty database."""
        name = f"registry_{secrets.token_hex(4)}"
        at = f"host={self.folder} user={self.name} dbname=postgres"
        with psycopg.connect(at, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{self.name}@/{name}?host={self.folder}"

    def _run(self, program, *arguments):
        subprocess.run(
            [self._bin / program, *map(str, arguments)], check=True, timeout=60,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user,
            extra_groups=[] if self._user else None, cwd=self.folder,
        )  # fmt: skip
