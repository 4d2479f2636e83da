"""A real PostgreSQL server that can be restarted."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import free_port

SUPERUSER = "postgres"
"""The database's superuser, and the system's user that the server runs as if the tests run as root."""
SETTINGS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=200"
"""The first three make the server faster and would lose data in a crash of the system."""


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; None if it is not installed."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or ([Path(found).parent] if found else [])
    return folders[-1] if folders else None


class Postgres:
    """A PostgreSQL server on loopback with its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = binaries()
        assert programs is not None
        self.programs = programs
        self.port = free_port()
        folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(folder, SUPERUSER)
        # With LC_ALL=C the encoding would be SQL_ASCII, which psycopg does not decode.
        options = ["--encoding=UTF8", "--auth=trust", "--no-sync"]
        self._run("initdb", "-D", str(folder / "data"), "-U", SUPERUSER, *options)

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} {SETTINGS}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Stop the server without waiting for its clients to disconnect."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "fast", "stop")

    def create(self, database: str) -> str:
        """Create a database; returns its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", SUPERUSER, database)
        return f"postgresql+psycopg://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            command = ["setpriv", f"--reuid={SUPERUSER}", f"--regid={SUPERUSER}", "--init-groups", *command]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A running server in a temporary folder, stopped and removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        # The server runs as another user, who could not enter pytest's folders.
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "postgres")
        server.start()
        try:
            yield server
        finally:
            server.stop()
