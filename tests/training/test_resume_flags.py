"""`lit-mnist fit --resume`: which run is resumed, and whether it goes on."""

import pytest
import torch
from conftest import SHORT, Cli

from lit_mnist.errors import Interrupted
from lit_mnist.tracking.queries.lookup import find_unfinished
from lit_mnist.tracking.queries.reader import STUDY, TRIAL
from lit_mnist.tracking.run import open_run

FIT = ("fit", "--config", "zhang/cnn", *SHORT, "--tracking.system_metrics", "false", "--tracking.figures", "false")


def test_a_fit_that_its_time_limit_stopped_goes_on_with_a_larger_one(cli: Cli) -> None:
    # The time limit is reached at once, but 2 steps are the minimum, and the epoch of 8 steps is completed.
    limits = ("--trainer.max_time", "00:00:00:00", "--trainer.min_steps", "2", "--trainer.max_epochs", "2")
    code, out, err = cli(*FIT, *limits)
    assert code == 0, err
    run_id = out.split()[1]
    code, out, err = cli("fit", "--resume", run_id)
    assert (code, err) == (0, "") and "its time limit (--trainer.max_time) of 0:00:00 is reached at step 8" in out
    code, out, err = cli("fit", "--resume", run_id, "--trainer.max_time", "01:00:00:00")
    assert code == 0 and "goes on from step 8\n" in out, err
    with open_run("", run_id=run_id) as run:
        assert run.data().info.status == "FINISHED"
        assert [step for step, _ in run.history("val/loss")] == [8, 16]
        last = torch.load(run.client.download_artifacts(run_id, "checkpoints/last.ckpt"), weights_only=True)
    assert last["global_step"] == 16


def _killed_run(tags: dict[str, str]) -> str:
    with pytest.raises(Interrupted), open_run("e", system_metrics=False, tags=tags) as run:
        run.log_text("model: {}", "config.yaml")
        raise Interrupted(15)
    return run.id


def test_last_is_never_a_run_that_fit_did_not_make(cli: Cli) -> None:
    older = _killed_run({})
    with pytest.raises(Interrupted), open_run("by hand", system_metrics=False):
        raise Interrupted(15)
    assert find_unfinished() == older


def test_last_is_never_the_run_of_a_sweeps_trial(cli: Cli) -> None:
    trial = {STUDY: "s", TRIAL: "3"}
    _killed_run(trial)
    code, _, err = cli("fit", "--resume", "last")
    assert code == 1 and "there is no unfinished run" in err
    older = _killed_run({})
    _killed_run(trial)
    assert find_unfinished() == older
