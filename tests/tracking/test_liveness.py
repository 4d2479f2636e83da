"""When a run may be taken over: what proves that its process is dead, and the error if nothing proves it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import wait_for
from test_sync import killed_run

from lit_mnist.errors import UserError
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.liveness import HEARTBEAT, HEARTBEAT_TIMEOUT, State, find_liveness
from lit_mnist.tracking.process import find_process, this_boot, this_host
from lit_mnist.tracking.queries.lookup import find_unfinished, local_folder
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store

FIND_UNFINISHED = "from lit_mnist.tracking.queries.lookup import find_unfinished; print(find_unfinished())"
OTHER_HOST = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]


def _move_elsewhere(run_id: str, age: float | None) -> Path:
    """Turn a killed run into one of another machine, whose heartbeat is `age` seconds old; returns its folder."""
    folder = local_folder(run_id)
    assert folder is not None
    record = json.loads((folder / "run.json").read_text()) | {"host": "elsewhere", "boot": "another"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / HEARTBEAT).unlink(missing_ok=True)
    client = connect(find_store())
    for name, value in {"host": "elsewhere", "boot": "another"}.items():
        client.set_tag(run_id, name, value)
    if HEARTBEAT in client.get_run(run_id).data.tags:  # it may have been killed before its first heartbeat
        client.delete_tag(run_id, HEARTBEAT)
    if age is not None:
        (folder / HEARTBEAT).touch()
        os.utime(folder / HEARTBEAT, (time.time() - age,) * 2)
        client.set_tag(run_id, HEARTBEAT, f"{time.time() - age:.0f}")
    return folder


def _run_elsewhere(**tags: str) -> str:
    """The id of a RUNNING run of another machine, which shares the store with this one, and no folder."""
    where = {"host": "elsewhere", "process": "12@1.00", "boot": "another", **tags}
    return str(connect(find_store()).create_run("0", tags=where).info.run_id)


def test_a_killed_run_is_found_after_the_host_name_has_changed(project: Path) -> None:
    if subprocess.run([*OTHER_HOST, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare --uts is not allowed here")
    run_id = killed_run()
    found = subprocess.run(
        [*OTHER_HOST, sys.executable, "-c", FIND_UNFINISHED], capture_output=True, text=True, timeout=120
    )
    assert found.stdout == f"{run_id}\n", found.stderr


def test_an_unfinished_run_of_another_machine_is_found_once_its_heartbeat_is_old(project: Path) -> None:
    older, newest = killed_run(), killed_run()
    assert find_unfinished() == newest
    for offline in (False, True):
        _move_elsewhere(newest, HEARTBEAT_TIMEOUT + 1)
        assert find_unfinished(offline) == newest
        for age, message in (
            (5, r"may be alive on elsewhere: its last heartbeat was \d+ s ago"),
            (None, "no heartbeat"),
        ):
            _move_elsewhere(newest, age)
            with pytest.raises(UserError, match=f"^run {newest} .*{message}.*`--resume {newest}`$"):
                find_unfinished(offline)
    connect(find_store()).set_terminated(newest, "FINISHED")
    (local_folder(newest) / "spool.sent").write_text(str((local_folder(newest) / "spool.jsonl").stat().st_size))
    assert find_unfinished() == older


@pytest.mark.parametrize(
    ("age", "message"),
    [
        (5.0, r"its last heartbeat was \d+ s ago; without another it counts as dead in \d+ s$"),
        (-350.0, r"\d+ s in the future \(do the hosts' clocks differ\?\); .* in 4\d\d s$"),
    ],
)
def test_a_run_that_may_be_alive_on_another_machine_is_refused(
    age: float, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = _run_elsewhere(heartbeat=f"{time.time() - age:.0f}")
    with (
        pytest.raises(BusyError, match=f"^run {run_id} may be alive on elsewhere: .*{message}"),
        open_run("", run_id=run_id, resume=True),
    ):
        pass
    assert capsys.readouterr() == ("", "")
    assert local_folder(run_id) is None and connect(find_store()).get_run(run_id).data.tags["host"] == "elsewhere"
    with open_run("", run_id=run_id, resume=True, leased=True, system_metrics=False) as run:
        assert run.data().data.tags["host"] != "elsewhere"


@pytest.mark.parametrize("tags", [{"heartbeat": f"{time.time() - HEARTBEAT_TIMEOUT - 1:.0f}"}, {}])
def test_a_run_with_an_old_heartbeat_or_without_one_is_taken_over(
    tags: dict[str, str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = _run_elsewhere(**tags)
    with open_run("", run_id=run_id, resume=True, system_metrics=False) as run:
        found = run.data().data.tags
        assert found["host"] != "elsewhere" and time.time() - float(found["heartbeat"]) < 30
    assert f"run {run_id} was RUNNING on elsewhere: taking it over\n" in capsys.readouterr().err


@pytest.mark.skipif("." not in this_boot(), reason="the start of process 1 cannot be read here")
def test_a_process_is_checked_directly_unless_it_ran_in_another_container() -> None:
    def state(boot: str, process: str | None) -> State:
        tags = {"host": this_host(), "boot": boot, "process": str(process), HEARTBEAT: f"{time.time():.0f}"}
        return find_liveness(None, None, tags).state

    namespace, _, started = this_boot().rpartition(".")
    # The second form is that of an earlier version, and of processes that cannot read the start of process 1.
    for boot in (this_boot(), namespace):
        assert state(boot, find_process(os.getppid())) is State.ALIVE
        assert state(boot, "1@0.00") is State.DEAD
    # An earlier container, whose namespace had the same number.
    assert state(f"{namespace}.{int(started) - 1}", "1@0.00") is State.PERHAPS


@pytest.mark.root
def test_the_boot_is_known_if_other_users_processes_are_hidden() -> None:
    """Clusters mount /proc with hidepid, which hides process 1, since it is root's, from their users."""
    as_user = (
        "from lit_mnist.tracking.process import *; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "print(this_boot(), same_numbering(this_boot(), {!r}))"
    )
    hidden = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", as_user.format(this_boot())]
    boot, same = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert this_boot().startswith(boot) and "." not in boot and same == "True"


def test_a_running_run_sends_heartbeats_that_are_not_in_its_journal(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_mnist.tracking.journal.uploader.HEARTBEAT_INTERVAL", 0.0)
    with open_run("alive", system_metrics=False) as run:
        run.uploader.interval = 0.1
        journal = run.journal.path.read_bytes() if run.journal.path.exists() else b""
        for _ in range(2):
            run.client.set_tag(run.id, HEARTBEAT, "0")
            os.utime(run.folder / HEARTBEAT, (0, 0)) if (run.folder / HEARTBEAT).exists() else None
            wait_for(lambda: run.data().data.tags[HEARTBEAT] != "0", "a heartbeat")
            # The heartbeat in the store may have touched the file before its time was set back above.
            wait_for(lambda: (run.folder / HEARTBEAT).stat().st_mtime > 0, "a heartbeat in the folder")
        assert (run.journal.path.read_bytes() if run.journal.path.exists() else b"") == journal


def test_a_refused_resume_leaves_no_local_folder(project: Path) -> None:
    from lit_mnist.training.configuration import LitCLI
    from lit_mnist.training.fit import fit

    run_id = _run_elsewhere(heartbeat=f"{time.time():.0f}")
    client = connect(find_store())
    config = LitCLI(["--config", "zhang/cnn", "--data", "MiniMNISTDataModule"]).config_yaml()
    client.log_text(run_id, config, "config.yaml")
    with pytest.raises(BusyError):
        fit(["--resume", run_id])
    assert local_folder(run_id) is None
