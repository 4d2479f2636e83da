"""A trial on two devices is one set of parameters, one run, one report a validation."""

from pathlib import Path

from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from small import spec_text, trial_runs, work

from lit_mnist.sweeps.search.spec import parse_spec
from lit_mnist.sweeps.study.storage import open_storage
from lit_mnist.sweeps.study.study import create_or_open_study

LR = [0.01, 1e-7]


def test_a_trial_on_two_devices_has_one_run_and_is_pruned_on_both(project: Path) -> None:
    fields = {
        "metric": "val/loss", "direction": "minimize", "trials": 2, "sampler": "grid",
        "points": [{"model.lr": 0.01}],
        "space": {"model.lr": {"choices": LR}}, "pruner": {"name": "median", "n_startup_trials": 1},
        "flags": {"trainer.devices": 2, "trainer.accelerator": "cpu", "trainer.strategy": "ddp",
                  "trainer.max_epochs": 2},
    }  # fmt: skip
    study = create_or_open_study(open_storage(None), parse_spec(spec_text(**fields), "small"))
    good = create_trial(
        value=0.1,
        params={"model.lr": 0.01},
        distributions={"model.lr": CategoricalDistribution(LR)},
        intermediate_values={0: 0.2, 1: 0.1},
    )
    study.add_trial(good)
    _, trial = work(**fields).get_trials()
    assert trial.state == TrialState.PRUNED and trial.params == {"model.lr": 1e-7}
    assert list(trial.intermediate_values) == [0]
    (run,) = trial_runs(study)
    assert [run.info.run_id] == trial.user_attrs["runs"] and run.info.status == "FINISHED"
    assert run.data.params["lr"] == "1e-07" and run.data.tags["device"].startswith("cpu × 2")
    assert run.data.tags["sweep.state"] == "pruned" and run.data.metrics["epoch"] == 0
