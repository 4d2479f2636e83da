"""A password appears in no output, file, tag or log."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli

from lit_mnist.errors import UserError
from lit_mnist.guard import guarded
from lit_mnist.redaction import redact
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.tracking.folder import read_record
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store

PASSWORD = "hunter-2x"
URL_WITH_USER = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/x"
URL_WITH_QUERY = f"postgresql+psycopg://127.0.0.1:1/x?password={PASSWORD}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:s3cret@host/x: no", "at postgresql://me:***@host/x: no"),
        ("http://me:s3c/r@et@host:5000/", "http://me:***@host:5000/"),
        ("no runs in postgresql://h/x?password=s3cret yet", "no runs in postgresql://h/x?password=*** yet"),
        ("x?password=s3cret: why", "x?password=***: why"),
        ("x?a=1&PASSWORD=s3cret&b=2", "x?a=1&PASSWORD=***&b=2"),
        ("http://127.0.0.1:5000/#/experiments", "http://127.0.0.1:5000/#/experiments"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_passwords_in_urls_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_password_outside_a_url_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MNIST_STORAGE", "postgresql://me:p%40ssword@host/x")
    assert redact("bad value 'p@ssword' (p%40ssword)") == "bad value '***' (***)"


@pytest.mark.parametrize(
    "uri",
    [URL_WITH_USER, URL_WITH_QUERY, f"postgresql+psycopg://me:{PASSWORD}/@x@127.0.0.1:y/x", f"x://:{PASSWORD}@h"],
)
def test_no_command_prints_the_password_of_a_store_it_cannot_reach(
    uri: str, cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in (
        ["runs"],
        ["compare", "ab", "cd"],
        ["fit", "--resume", "last"],
        ["sync"],
        ["ui", "--port", "0"],
    ):
        code, out, err = cli(*command)
        assert PASSWORD not in out + err
        assert command == ["fit", "--resume", "last"] or code == 0 or err.count("\n") == 1
    with pytest.raises(UserError) as caught:
        open_storage(uri)
    assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Query string argument:sqlalchemy.exc.SAWarning")
def test_a_run_stores_no_password_and_sync_needs_the_full_uri(
    project: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    # SQLite needs no password; this one stands in for that of a server.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/own.db?password={PASSWORD}")
    monkeypatch.setattr(sys, "argv", ["lit-mnist", "sweep", "--storage", URL_WITH_USER])
    with pytest.raises(ZeroDivisionError), open_run("e", system_metrics=False) as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise ZeroDivisionError(URL_WITH_USER)
    for path in run.folder.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes()
    record = read_record(run.folder)
    assert record is not None and record.uri == f"sqlite:///{project}/own.db?password=***"
    assert record.store(find_store()) == find_store()
    assert PASSWORD not in json.dumps(dict(connect(find_store()).get_run(run.id).data.tags))
    assert PASSWORD not in "".join(cli("runs")[1:])
    # An earlier version stored the password: the next write removes it.
    record.uri = find_store().uri
    record.write(run.folder)
    assert PASSWORD not in (run.folder / "run.json").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/another.db")
    (run.folder / "spool.sent").write_text("0")
    code, _, err = cli("sync")
    assert code == 1 and "set MLFLOW_TRACKING_URI to its full URI" in err


def _restore_sigint() -> None:
    """Restore the default handler of SIGINT, which a shell makes its background processes ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [None, signal.SIGINT])
def test_a_database_that_does_not_answer_times_out_or_is_interrupted(
    number: signal.Signals | None, project: Path
) -> None:
    """Without a timeout, psycopg would wait for more than 100 s."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/x"
        command = [sys.executable, "-m", "lit_mnist.cli", "runs"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        with (
            subprocess.Popen(command, env=environment, preexec_fn=_restore_sigint, **pipes) as process,
            silent.accept()[0],
        ):
            if number is not None:
                process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert out == "" and PASSWORD not in err
    if number is not None:
        assert process.returncode in (130, -number) and "Traceback" not in err
    else:
        assert process.returncode == 1 and err.count("\n") == 1 and "connection timeout expired" in err


def test_a_traceback_holds_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        try:
            raise OSError(f"no server at {URL_WITH_USER}")
        except OSError:
            raise UserError("cannot be reached") from None

    assert guarded(fail, debug=True) == 1
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "no server at" in errors and PASSWORD not in errors
    assert errors.splitlines()[-1] == "lit-mnist: error: cannot be reached"
