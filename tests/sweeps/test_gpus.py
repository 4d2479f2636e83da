"""Workers and their trials share a node's GPUs. These tests need no GPU, only CUDA_VISIBLE_DEVICES."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from servers import wait_for
from small import spec_text, trial_runs, write_spec

from lit_mnist.errors import UsageError
from lit_mnist.slurm import allocation, leave_tasks, local_task
from lit_mnist.sweeps.resources import count_devices, take_task_share, worker_gpus
from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.search.validation import check
from lit_mnist.sweeps.study.storage import open_storage, open_study

GPUS = ["4", "5", "6", "GPU-7"]
"""Names as in CUDA_VISIBLE_DEVICES; they need not begin at 0."""
TWO_RANKS = {"trainer.strategy": "ddp", "trainer.max_epochs": 1}


@pytest.mark.parametrize(
    ("workers", "devices", "expected"),
    [
        (2, [2], ["4,5", "6,GPU-7"]),
        (2, [1, 2], ["4,5", "6,GPU-7"]),
        (3, [1], ["4", "5", "6"]),
        (6, [1], ["4", "5", "6", "GPU-7", "4", "5"]),  # small trainings may share a GPU
        (2, ["auto"], ["4,5", "6,GPU-7"]),
        (1, [-1], ["4,5,6,GPU-7"]),
        (1, [[1, 3]], []),
        (2, [[3]], []),
        (1, ["0,1"], []),
    ],
)
def test_each_worker_has_its_own_gpus(workers: int, devices: list, expected: list[str]) -> None:
    assert worker_gpus(GPUS, workers, devices) == expected


@pytest.mark.parametrize(
    ("workers", "devices", "message"),
    [
        (3, [2], "3 workers with trainer.devices 2 need 6 GPUs, and there are 4 here"),
        (1, [1, 8], "1 worker with trainer.devices 8 need 8 GPUs, and there are 4 here"),
        (2, [[0, 1]], "each of the 2 workers would train on the same GPUs; give their number, trainer.devices 2"),
        (1, [[4]], r"trainer.devices \[4\]: there are 4 GPUs here, counted from 0"),
    ],
)
def test_too_few_gpus_are_reported_before_the_first_trial(workers: int, devices: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        worker_gpus(GPUS, workers, devices)


@pytest.mark.parametrize(
    ("devices", "count"), [(2, 2), ([1], 1), ([0, 3], 2), ("0,3", 2), ("auto", None), (-1, None)]
)
def test_devices_are_counted_in_every_form(devices: int | str | list[int], count: int | None) -> None:
    assert count_devices(devices) == count


@pytest.mark.parametrize(
    ("task", "tasks", "visible", "extra", "expected"),
    [
        (1, "4", "0,1,2,3", {"SLURM_GPUS_ON_NODE": "4"}, "1"),
        (1, "2", "0,1,2,3", {"SLURM_GPUS_ON_NODE": "4"}, "2,3"),
        (2, "3", "0,1,2,3", {}, "2,3"),
        (2, "4(x2)", "0,1", {}, "0"),  # more tasks than GPUs
        (1, "2", "1", {"SLURM_GPUS_ON_NODE": "2"}, "1"),  # SLURM has given each task its own
        (1, "2", "2,3", {"SLURM_GPUS_PER_TASK": "2"}, "2,3"),
    ],
)
def test_tasks_of_a_node_that_see_the_same_gpus_share_them(
    task: int, tasks: str, visible: str, extra: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_LOCALID": str(task), "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": tasks}  # fmt: skip
    for name, value in {**step, **extra, "CUDA_VISIBLE_DEVICES": visible}.items():
        monkeypatch.setenv(name, value)
    take_task_share()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    leave_tasks()
    assert local_task() == (0, 1) and allocation() is not None


def test_two_workers_train_on_two_gpus_each(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study with trials on one and on two devices: each process of a trial sees the GPUs of its worker alone.

    Without a GPU, Lightning trains the same processes on the CPU.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(GPUS))
    devices = {"choices": [1, 2]}
    points = [{"model.lr": 0.01, "trainer.devices": count} for count in (2, 2, 1)]
    space = {"model.lr": {"low": 1e-3, "high": 0.1}, "trainer.devices": devices}
    path = write_spec(flags=TWO_RANKS, trials=3, space=space, points=points)
    command = [sys.executable, "-m", "lit_mnist.cli", "sweep", path, "--workers", "2"]
    visible_gpus: dict[str, set[str]] = {}

    def record_visible_gpus() -> bool:
        """Record the GPUs that each trial's processes see; returns True when the sweep has ended."""
        for process in psutil.Process(sweep.pid).children(recursive=True):
            try:
                words = process.cmdline()
                if "trial" in words:
                    visible_gpus.setdefault(words[-1], set()).add(
                        process.environ().get("CUDA_VISIBLE_DEVICES", "all")
                    )
            except psutil.Error:
                continue
        return sweep.poll() is not None

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        wait_for(record_visible_gpus, "end of the sweep", 400)
        assert sweep.stderr is not None
        assert sweep.returncode == 0, sweep.stderr.read()
    assert sorted(map(list, visible_gpus.values())) == [["4,5"], ["6,GPU-7"]]
    runs = trial_runs(open_study(open_storage(None), "small"))
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [run.data.tags["device"].startswith("cpu × 2") for run in runs] == [True, True, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"trainer.num_nodes": 2}, r"trainer.num_nodes 2: a trial runs on one node; .*submit --array N"),
        ({"trainer.devices": 3}, "batch_size 20 cannot be shared equally by 3 devices"),
    ],
)
def test_trials_that_no_single_node_can_train_are_refused(flags: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(parse_spec(spec_text(flags=flags), "small"))
