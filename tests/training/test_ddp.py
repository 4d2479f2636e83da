"""A training with two processes is one run, with the results of one process; a signal ends all processes."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from conftest import Cli
from lightning.pytorch import Trainer
from servers import free_port

from lit_mnist.data import MiniMNISTDataModule
from lit_mnist.signals import SignalWatch
from lit_mnist.tracking.queries.listing import runs
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.lightning.ranks import LaunchedRanks

DDP = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
FIT = ["fit", "--config", "zhang/autoencoder", "--data", "MiniMNISTDataModule", "--trainer.max_steps", "80",
       "--data.corruption", "gaussian", "--data.noise", "0.3", "--data.eval_batch_size", "96",
       "--data.batch_size", "70", "--data.train_size", "2000"]  # fmt: skip


def lit_mnist(*arguments: str) -> str:
    command = [sys.executable, "-m", "lit_mnist.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_devices_give_one_run_with_the_results_of_one_device(cli: Cli, project: Path) -> None:
    assert cli(*FIT)[0] == 0
    lit_mnist(*FIT, *DDP)
    two, one = runs(find_store())
    assert two["status"] == one["status"] == "FINISHED"
    for run in (one, two):
        assert cli("test", "--run", run["id"])[0] == 0
    two, one = runs(find_store())
    compared = {name for name in one["metrics"] if name.startswith(("train/", "val/", "test/", "best/"))}
    assert len(compared) > 5 and compared <= set(two["metrics"])
    for name in compared:
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-4), name


def test_two_devices_in_a_batch_script_give_one_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is that of `sbatch --ntasks=2`, whose script starts `fit` without srun."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    lit_mnist(*FIT, *DDP)
    (run,) = runs(find_store())
    assert run["status"] == "FINISHED"


def test_torchrun_trains_a_single_run_and_resumes_it_by_its_key(project: Path) -> None:
    # `-m` comes before the program, so that torchrun does not parse the flags after it.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29547",
               "-m", "lit_mnist.cli", *FIT, *DDP, "--key", "both"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for steps in ("80", "100", "100"):
        done = subprocess.run(
            [*command, "--trainer.max_steps", steps], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stdout
    (run,) = runs(find_store())
    assert run["status"] == "FINISHED"
    points = connect(find_store()).get_metric_history(run["id"], "train/loss_epoch")
    assert max(point.step for point in points) == 100


def test_two_nodes_without_a_shared_disk_resume_from_the_first_nodes_checkpoint(project: Path) -> None:
    """Each node has a folder of its own for runs and store, which the other node does not know."""
    nodes = [project / "first", project / "second"]
    for node in nodes:
        node.mkdir()
        (node / "pyproject.toml").touch()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    train = ["-m", "lit_mnist.cli", *FIT, "--trainer.num_nodes", "2", "--trainer.accelerator", "cpu",
             "--trainer.strategy", "ddp", "--key", "both", "--trainer.log_every_n_steps", "20"]  # fmt: skip

    def start(node: Path, steps: str) -> subprocess.Popen[str]:
        launch = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        address = ["--rdzv-endpoint=127.0.0.1:29563", f"--local-addr=127.0.0.{nodes.index(node) + 1}"]
        command = [sys.executable, "-m", *launch, *address, *train, "--trainer.max_steps", steps]
        return subprocess.Popen(command, cwd=node, env=environment, stderr=subprocess.PIPE, text=True)

    for limit in ("60", "100"):
        for process in [start(node, limit) for node in nodes]:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    assert not list(nodes[1].glob("mlruns/runs/*"))
    os.chdir(nodes[0])
    (run,) = runs(find_store())
    assert run["status"] == "FINISHED"
    steps = [point.step for point in connect(find_store()).get_metric_history(run["id"], "train/loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 100

    os.chdir(project)
    lit_mnist(*FIT, *DDP, "--trainer.log_every_n_steps", "20", "--trainer.max_steps", "100")
    (undisturbed,) = runs(find_store())
    assert run["metrics"]["train/loss"] == undisturbed["metrics"]["train/loss"]
    assert run["metrics"]["val/loss"] == undisturbed["metrics"]["val/loss"]


RANK_0 = """
import os, sys
from lit_mnist.signals import SignalWatch
from lit_mnist.training.lightning.ranks import LaunchedRanks

ranks = LaunchedRanks(0, 2, "127.0.0.1", int(sys.argv[1]), listen=True)
ranks.send({"run": None, "done": True}, {})
print("sent", flush=True)
with SignalWatch() as watch:
    ranks.wait_until_received(watch)
os._exit(0)  # at once, as the command does
"""


def test_rank_0_waits_until_the_other_ranks_know_that_the_run_is_finished(tmp_path: Path) -> None:
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", RANK_0, str(port)], stdout=subprocess.PIPE) as rank_0:
        assert rank_0.stdout is not None and rank_0.stdout.readline() == b"sent\n"
        with suppress(subprocess.TimeoutExpired):  # this rank starts later, as on a slower node
            rank_0.wait(2)
        with SignalWatch() as watch:
            message = LaunchedRanks(1, 2, "127.0.0.1", port, listen=False).receive(tmp_path, watch)
        assert message == {"run": None, "done": True} and rank_0.wait() == 0


def test_testing_on_two_devices_counts_each_image_once(cli: Cli, project: Path) -> None:
    assert cli(*FIT)[0] == 0
    (run,) = runs(find_store())
    assert cli("test", "--run", run["id"])[0] == 0
    out = lit_mnist("test", "--run", run["id"], *DDP)
    assert out.count("test/mse") == 1
    history = connect(find_store()).get_metric_history(run["id"], "test/mse")
    assert max(p.value for p in history) == pytest.approx(min(p.value for p in history), rel=1e-5)


def _points_and_tensors(run_id: str) -> tuple[list[tuple[str, int, float]], list[torch.Tensor]]:
    """All points of a run except timings, and its last weights and optimiser state."""
    client = connect(find_store())
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(("system/", "images"))]
    points = [(name, p.step, p.value) for name in names for p in client.get_metric_history(run_id, name)]
    last = torch.load(client.download_artifacts(run_id, "checkpoints/last.ckpt"), weights_only=True)
    states = last["optimizer_states"][0]["state"].values()
    return sorted(points), [*last["state_dict"].values(), *(state["momentum_buffer"] for state in states)]


def test_a_signal_to_one_process_stops_all_and_the_run_resumes_exactly(project: Path) -> None:
    flags = ["fit", "--config", "zhang/cnn", "--data", "MiniMNISTDataModule", "--model.channels", "[4,8]",
             "--model.dropout", "0.3", "--model.optimizer", "sgd", "--model.momentum", "0.9",
             "--data.rotation", "10", "--data.batch_size", "40", "--trainer.max_epochs", "2", *DDP]  # fmt: skip
    whole = lit_mnist(*flags).split()[1]
    command = [sys.executable, "-m", "lit_mnist.cli", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    run_id = runs(find_store())[0]["id"]
    journal = project / "mlruns" / "runs" / run_id / "spool.jsonl"
    while "train/loss" not in journal.read_text():
        time.sleep(0.05)
    (other,) = psutil.Process(process.pid).children()
    other.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert runs(find_store())[0]["status"] == "KILLED"
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
    assert "goes on from step" in lit_mnist("fit", "--resume", "last")
    (points, tensors), (whole_points, whole_tensors) = _points_and_tensors(run_id), _points_and_tensors(whole)
    assert points == whole_points
    assert all(torch.equal(a, b) for a, b in zip(tensors, whole_tensors, strict=True))


def test_a_batch_that_cannot_be_shared_equally_is_refused(cli: Cli, project: Path) -> None:
    command = [sys.executable, "-m", "lit_mnist.cli", *FIT, *DDP, "--data.batch_size", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--data.batch_size 7 cannot be shared equally by 2 devices: take a multiple of 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_figures_show_every_image_whatever_the_number_of_devices() -> None:
    data = MiniMNISTDataModule(val_size=400)
    data.setup("fit")
    data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    assert sum(len(batch.y) for batch in data.val_dataloader()) == 200
    data.full_dataset_per_rank = True
    assert sum(len(batch.y) for batch in data.val_dataloader()) == 400


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_signal_ends_the_wait_for_a_node_that_never_starts(project: Path) -> None:
    port = free_port()
    nodes = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    flags = [*FIT, *DDP, "--trainer.devices", "1", "--trainer.num_nodes", "2"]
    command = [sys.executable, "-m", "lit_mnist.cli", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **nodes})
    try:
        while not _listens(port):  # the rendezvous has begun
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and "stopped by SIGTERM" in errors and "Traceback" not in errors
    (run,) = runs(find_store())
    assert run["status"] == "KILLED"


HANGS = f"""
import os, sys, time
from pathlib import Path
from lightning.pytorch import Callback
from lit_mnist.guard import guarded
from lit_mnist.terminal import quiet
from lit_mnist.training.fit import fit
from lit_mnist.training.lightning import ranks

class Hang(Callback):
    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            Path("hangs").touch()
            time.sleep(600)

quiet()
ranks.HANG_TIMEOUT = 2.0
sys.exit(guarded(lambda: fit({[*FIT[1:], *DDP]!r}, [Hang()])))
"""


def test_ranks_that_wait_for_a_hanging_one_are_killed_after_a_signal(project: Path) -> None:
    (project / "hang.py").write_text(HANGS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "hang.py"], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while not (project / "hangs").exists():
            assert process.poll() is None
            time.sleep(0.1)
        (other,) = psutil.Process(process.pid).children()
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143 and "SIGTERM came, and no batch ended within 2 s" in errors
        psutil.wait_procs([other], timeout=30)
        assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
        (run,) = runs(find_store())
        assert run["status"] == "KILLED"
    finally:
        process.kill()
