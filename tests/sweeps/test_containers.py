"""Two containers with the same host name and separate PID namespaces: nothing that is alive is taken over."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from postgres import running_postgres
from servers import wait_for
from small import spec_text

from lit_mnist.errors import UserError
from lit_mnist.sweeps.search.optuna_private import storage_of
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.leases import Leases
from lit_mnist.sweeps.study.locks import one_host
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.study import create_or_open_study, stored_spec
from lit_mnist.tracking.folder import BusyError
from lit_mnist.tracking.run import open_run

pytestmark = pytest.mark.root
CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
INSIDE = """
import sys, time
from lit_mnist.sweeps.study import heartbeats
from lit_mnist.sweeps.study.leases import Leases
from lit_mnist.sweeps.study.locks import one_host
from lit_mnist.sweeps.study.storage import open_storage, open_study
from lit_mnist.sweeps.study.study import stored_spec
from lit_mnist.tracking.run import open_run

heartbeats.HEARTBEAT_INTERVAL = 0.1
study = open_study(open_storage(None), "small")
leases = Leases(study, stored_spec(study), 0, 1)
with one_host(study._storage), open_run("alive", system_metrics=False) as run:
    with heartbeats.Heartbeats(leases, leases.acquire()):
        print(run.id, flush=True)
        time.sleep(600)
"""


@pytest.fixture(params=["journal", pytest.param("postgres", marks=pytest.mark.postgres)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kind of storage that LIT_MNIST_STORAGE names."""
    with running_postgres() if request.param == "postgres" else nullcontext() as server:
        monkeypatch.setenv("LIT_MNIST_STORAGE", server.create("c") if server else str(tmp_path / "sweeps.journal"))
        yield request.param


def test_another_containers_trial_and_run_are_taken_over_only_after_its_death(
    storage: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The containers share the study and the tracking store, but no folder.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.setattr("lit_mnist.sweeps.study.leases.HEARTBEAT_TIMEOUT", 3.0)
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(trials=1), "small"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "pyproject.toml").touch()
    with subprocess.Popen([*CONTAINER, sys.executable, "-c", INSIDE], cwd=other, stdout=subprocess.PIPE) as inside:
        assert inside.stdout is not None
        run_id = inside.stdout.readline().decode().strip()
        assert run_id
        try:
            leases = Leases(study, stored_spec(study), 0, 1)
            assert leases.acquire() is None
            with pytest.raises(BusyError, match="may be alive"), open_run("", run_id=run_id, resume=True):
                pass
            if storage == "journal":
                with pytest.raises(UserError, match="a file serves one machine"), one_host(storage_of(study)):
                    pass
            else:
                before = study.get_trials()[0].user_attrs["heartbeat"]["count"]
                wait_for(
                    lambda: study.get_trials()[0].user_attrs["heartbeat"]["count"] > before + 40, "4 s to pass"
                )
                assert leases.acquire() is None
        finally:
            inside.kill()
    wait_for(lambda: leases.acquire() is not None, "the dead worker's trial")
