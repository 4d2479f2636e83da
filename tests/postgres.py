"""A real PostgreSQL server that can be restarted."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

SUPERUSER = "postgres"
TUNED = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=200"


def binaries() -> Path | None:
    """The folder of `initdb`; None where there is no PostgreSQL."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or ([Path(found).parent] if found else [])
    return folders[-1] if folders else None


class Postgres:
    """A server on a database in `folder`, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        there = binaries()
        assert there is not None
        self.programs = there
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(folder, SUPERUSER)
        # With LC_ALL=C the encoding would be SQL_ASCII, which psycopg does not decode.
        options = ["--encoding=UTF8", "--auth=trust", "--no-sync"]
        self._run("initdb", "-D", str(folder / "data"), "-U", SUPERUSER, *options)

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} {TUNED}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """End it at once, whoever is connected."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "fast", "stop")

    def create(self, database: str) -> str:
        """A new database; returns its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", SUPERUSER, database)
        return f"postgresql+psycopg://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to work for root.
        drop = (
            ["setpriv", f"--reuid={SUPERUSER}", f"--regid={SUPERUSER}", "--init-groups"]
            if os.getuid() == 0
            else []
        )
        command = [*drop, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
