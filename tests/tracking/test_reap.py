"""`lit-mnist runs --reap` sets dead runs to KILLED, and does not change live runs and those of other hosts."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import Cli
from servers import stored_history
from test_sync import killed_run

from lit_mnist.tracking.journal.journal import Journal
from lit_mnist.tracking.process import find_process, is_alive, this_boot, this_host, this_process
from lit_mnist.tracking.queries.lookup import local_folder
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store


def test_only_runs_that_are_certainly_dead_are_reaped(cli: Cli, project: Path) -> None:
    dead, rebooted, foreign = killed_run(), killed_run(), killed_run()
    client = connect(find_store())
    # From before a reboot of this host: another process may have the number by now.
    client.set_tag(rebooted, "boot", "another/1.1")
    client.set_tag(foreign, "host", "elsewhere")
    client.set_tag(foreign, "boot", "another/1.1")
    nameless = client.create_run("0", run_name="by hand").info.run_id
    died = 1_790_000_000
    os.utime(Journal(local_folder(dead)).path, (died, died))
    with (
        open_run("alive", "living", system_metrics=False) as living,
        subprocess.Popen(["sleep", "600"]) as process,
    ):
        # A live run of another project, which shares only the store with this one.
        tags = {"host": this_host(), "boot": this_boot(), "process": find_process(process.pid)}
        elsewhere = client.create_run("0", run_name="elsewhere", tags=tags).info.run_id
        try:
            code, out, err = cli("runs", "--reap")
        finally:
            process.kill()
        assert living.data().info.status == "RUNNING"
    assert (code, err) == (0, "")
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert lines.keys() == {dead, rebooted, foreign, nameless}
    for run_id in (dead, rebooted):
        assert lines[run_id] == f"run {run_id} (in mid-run) is KILLED: its process is gone"
    assert lines[foreign].startswith(
        f"run {foreign} (in mid-run) is left alone: it may be alive on elsewhere: its"
    )
    assert lines[nameless].endswith(
        "is left alone: it is RUNNING on an unknown host, from where there is no heartbeat: it may be alive"
    )
    found = client.get_run(dead)
    assert found.info.status == "KILLED" and found.info.end_time == 1000 * died
    assert len(stored_history(client, dead, "loss")) > 500 and Journal(local_folder(dead)).status() == "KILLED"
    left = (foreign, nameless, elsewhere)
    assert [client.get_run(run_id).info.status for run_id in left] == ["RUNNING"] * 3
    assert living.data().info.status == "FINISHED"
    for run_id in left:
        client.delete_run(run_id)
    assert cli("runs", "--reap") == (0, "no run is RUNNING without a process\n", "")


def test_a_run_that_ended_without_the_store_gets_the_status_in_its_journal(cli: Cli, project: Path) -> None:
    run_id = killed_run()
    Journal(local_folder(run_id)).append({"kind": "status", "status": "FINISHED", "end_time": 1_700_000_000_000})
    assert (
        f"run {run_id} (in mid-run) is FINISHED: its status had not reached the store" in cli("runs", "--reap")[1]
    )
    info = connect(find_store()).get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", 1_700_000_000_000)


@pytest.mark.parametrize("process", ["", "x@y", "999999999@1.0", "-1@1.0", "1e99@1"])
def test_invalid_process_is_not_alive(process: str) -> None:
    assert not is_alive(process)


def test_process_with_a_reused_pid_is_not_alive() -> None:
    number, _, start = this_process().partition("@")
    assert is_alive(this_process()) and not is_alive(f"{number}@{float(start) - 3600:.2f}")
