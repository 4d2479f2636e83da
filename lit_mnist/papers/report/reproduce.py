"""`lit-mnist reproduce`: train, measure and judge the experiments of the papers on this machine."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.markup import escape

from lit_mnist.errors import Interrupted
from lit_mnist.papers.report.description import describe_paper, describe_result
from lit_mnist.papers.report.experiment import Experiment, Runs, experiments, select
from lit_mnist.papers.report.results import (
    Result,
    add_figures,
    best_result,
    check_settings,
    length_of,
    merge_result,
    read_result,
    result_path,
    seed_entry,
    seed_list,
    seeds_shown,
    stage_tag,
    summaries_of,
)
from lit_mnist.papers.report.trained import TrainedStage
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import print_table, seconds, shorten
from lit_mnist.tracking.mlflow_private import DESCRIPTION
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.stages import SECONDS, Preset, find_stage, stage_key, train_stage

DECIDED = ("holds", "contradicted", "undecided")
"""The verdicts that are counted in the list of experiments, in this order."""
REPORT_INTERVAL = 15.0
"""Seconds between two progress lines of the same stage."""


def reproduce(
    names: Sequence[str], every: bool, seeds: Sequence[int], preset: Preset, folder: Path, replace: bool = False
) -> None:
    """Run experiments by name, or all of them; without either, list the experiments.

    Args:
        names: Papers or experiments.
        every: True for all experiments.
        seeds: Seeds to train and measure, which are added to the stored ones.
        preset: Length of the trainings.
        folder: Where the results are stored.
        replace: Remove the stored seeds.

    Raises:
        UserError: there is no such experiment, a training has failed, or the stored results have other settings.
        Interrupted: a signal arrived; the same command continues.

    """
    chosen = experiments() if every else select(names)
    if not chosen:
        list_experiments(folder)
        return
    # One signal watch for all experiments, so that a signal ends the whole command.
    with SignalWatch() as watch:
        for experiment in chosen:
            run_experiment(experiment, preset, seeds, watch, folder, replace)


def list_experiments(folder: Path) -> None:
    """Print a line for each experiment: verdicts in `folder`, duration, and title."""
    rows = []
    for experiment in experiments():
        result = best_result(folder, experiment)
        # Claims are matched by number and rule, so that a reworded claim still has its result.
        known = {(claim.key, claim.show_rule()) for claim in experiment.claims}
        kept = [c for c in (result["claims"] if result else []) if (c["number"], c["rule"]) in known]
        counts = Counter(claim["verdict"] for claim in kept)
        # Numbers without words, since the column would leave no room for the titles.
        said = " / ".join(str(counts[verdict]) for verdict in DECIDED) if result else "–"
        if result and result["length"] == "quick":
            said = "quick"
        quick, full = (f"{minutes:.0f} min" if (minutes := experiment.minutes[preset]) < 120 else
                       f"{minutes / 60:.0f} h" for preset in ("quick", "full"))  # fmt: skip
        count = str(len(result["seeds"])) if result else ""
        rows.append([experiment.id, said, count, quick, full, escape(experiment.title)])
    columns = ["experiment", "here", "seeds", "quick", "full", "title"]
    print_table(columns, rows, whole=columns[:5])
    print(
        "\nhere: claims that hold / are contradicted / are undecided (quick: shortened, without verdicts)"
        "\nquick, full: time for 3 seeds on two cores"
        "\n`lit-mnist reproduce zhang/cnn` checks one; `lit-mnist reproduce --table` shows every claim"
    )


def run_experiment(
    experiment: Experiment,
    preset: Preset,
    seeds: Sequence[int],
    watch: SignalWatch,
    folder: Path,
    replace: bool = False,
) -> Result:
    """Reproduce one experiment: train its missing stages, measure, judge, draw, store and print the result.

    Raises:
        Interrupted: a signal arrived; the next call continues.
        UserError: a training has failed, or the stored results in `folder` have other settings.

    """
    watch.check()
    length = length_of(experiment, preset)
    path = result_path(folder, experiment, length)
    if not replace:  # before hours of training, not after
        check_settings(path, experiment, length, read_result(path))
    print(f"{experiment.id}: {experiment.title}", flush=True)
    if length == "quick":
        print(f"  quick: {experiment.cut}; numbers only, no verdict", flush=True)
    result: Result = {}
    by_seed: list[Runs] = []
    try:
        for runs in _train(experiment, preset, seeds, watch):
            by_seed.append(runs)
            values = experiment.measure(runs)
            watch.check()  # after a signal during the last measurement, stop before anything is written
            seed = seeds[len(by_seed) - 1]
            entry = seed_entry(values, {name: stage.run_id for name, stage in runs.items()}, _training_time(runs))
            # Each seed is stored as soon as it is measured, so that an interruption loses none.
            result = merge_result(path, experiment, length, {seed: entry}, replace and len(by_seed) == 1)
            # The tag, by which the runs behind a number in the table are found (`filter` in the result).
            for stage in runs.values():
                stage.client.set_tag(stage.run_id, stage_tag(experiment), length)
    except Interrupted:
        print(f"{experiment.id} stopped; the same command continues it", flush=True)
        raise
    result = _publish(experiment, result, path, seeds, by_seed)
    _print_result(result, path)
    return result


def _publish(
    experiment: Experiment, result: Result, path: Path, seeds: Sequence[int], by_seed: Sequence[Runs]
) -> Result:
    """Draw the figures, and log them and the results to an MLflow run; returns the result with its figures."""
    length, summaries = result["length"], summaries_of(result)
    # Drawn before the run is opened, so that an error while drawing leaves no FAILED run.
    drawn = experiment.draw(by_seed, summaries)
    with open_run(f"reproduce/{experiment.paper}", f"{experiment.name} {length}", system_metrics=False) as run:
        run.log_params({"experiment": experiment.id, "length": length, "seeds": seed_list(seeds)})
        # As parameters, since MLflow would draw charts with a single dot for metrics.
        run.log_params({key: f"{summary.mean:.6g}" for key, summary in summaries.items()})
        run.set_tags({f"verdict.{i}": claim["verdict"] for i, claim in enumerate(result["claims"], 1)})
        for name, figure in drawn.items():
            file = path.with_suffix(f".{name}.png")
            figure.savefig(file, dpi=120)
            run.log_file(file, "figures")
        result = add_figures(path, [path.with_suffix(f".{name}.png").name for name in drawn])
        run.log_file(path, "results")
        figures = [f"figures/{name}" for name in result["figures"]]
        run.set_tags({DESCRIPTION: describe_result(result, run.id, figures)})
        with contextlib.suppress(Exception):  # e.g. an unreachable store; the next experiment tries again
            text = describe_paper(experiment.paper, experiments())
            run.client.set_experiment_tag(run.experiment_id, DESCRIPTION, text)
    return result


def _training_time(runs: Mapping[str, TrainedStage]) -> float:
    """Total training time in seconds of all stages of one seed, including training for other experiments."""
    tags = [stage.client.get_run(stage.run_id).data.tags for stage in runs.values()]
    return sum(float(each.get(SECONDS, 0)) for each in tags)


def _train(
    experiment: Experiment, preset: Preset, seeds: Sequence[int], watch: SignalWatch
) -> Iterator[dict[str, TrainedStage]]:
    """Train missing stages; yields the stages of each seed, by name, as soon as all of them are finished."""
    store = find_store()
    client = connect(store)
    # Stages that an experiment or sweep has already finished in this store are not trained again.
    keys = {(seed, name): stage_key(s, preset, seed) for seed in seeds for name, s in experiment.stages.items()}
    found = {item: find_stage(client, key) for item, key in keys.items()}
    missing = [item for item, run in found.items() if run is None or run.info.status != "FINISHED"]
    # The experiment's estimate is for three seeds and all stages.
    estimate = experiment.minutes[preset] * 60 * len(seeds) / 3 * len(missing) / len(keys)
    # One progress display for all seeds, since the times of stages with the first seed are used for the others.
    progress = StageProgress(experiment.id, [name for _, name in missing], estimate)
    if missing:
        left = seconds(progress.seconds_left())
        print(f"  to train: {len(missing)} of {len(keys)} stages, about {left}", flush=True)
    else:
        print(f"  all {len(keys)} stages are finished already", flush=True)
    for seed in seeds:
        trained: dict[str, TrainedStage] = {}
        for name, stage in experiment.stages.items():
            if (seed, name) in missing:
                progress.begin()
            # Also called for finished stages, to find their runs.
            run_id = train_stage(stage, preset, seed, watch, [progress])
            if (seed, name) in missing:
                progress.end(f"{name} seed {seed}")
            trained[name] = TrainedStage(run_id, client, store, watch)
        yield trained


def _print_result(result: Result, path: Path) -> None:
    rows = [[c["claim"], c["paper_shown"], c["ours_shown"], c["verdict"], c["why"]] for c in result["claims"]]
    # For a shortened training, the reason is the same for every claim, and was printed above.
    if result["cut"]:
        rows = [[*row[:4], ""] for row in rows]
    title = f"\n{result['experiment']}, {result['length']} length, {seeds_shown(result)}"
    print_table(["claim", "paper", "ours", "verdict", "why"], rows, title)
    if result["finding"]:
        print(result["finding"])
    for name in (*result["figures"], path.name):
        print(shorten(path.with_name(name)))


class StageProgress(Callback):
    """Prints a line when a stage ends, and regularly while it trains.

    The remaining time of a stage is estimated by the time of the same stage with an earlier seed, otherwise by the
    mean of the stages so far, and before any stage has ended by the experiment's own estimate.

    Args:
        title: Title of the experiment.
        names: Stages that are not finished, in the order of training.
        estimate: First estimate of the seconds that all of them take.

    """

    def __init__(self, title: str, names: Sequence[str], estimate: float) -> None:
        self.title, self.left = title, list(names)
        self.total = len(self.left)
        self._estimate = estimate / max(1, self.total)
        self._took: dict[str, float] = {}
        self._start = self._printed = time.monotonic()
        self._first_step = 0
        self._out = sys.stdout  # while a stage trains, sys.stdout is redirected

    def begin(self) -> None:
        """Note that the next stage begins."""
        self._start = self._printed = time.monotonic()

    def end(self, what: str) -> None:
        """Print that the current stage, described by `what`, has ended."""
        # Keyed by the stage's name, because the same stage takes about as long for another seed.
        self._took[self.left.pop(0)] = took = time.monotonic() - self._start
        left = f", about {seconds(self.seconds_left())} left" if self.left else ""
        done = f"{self.total - len(self.left)} of {self.total} stages"
        print(f"{self.title}: {done}, {what} in {seconds(took)}{left}", file=self._out, flush=True)

    def seconds_left(self, share: float = 0.0) -> float:
        """Estimate the seconds until all stages are trained, when `share` of the current one is done."""
        total = 0.0
        for i, name in enumerate(self.left):
            # The current stage by its own speed; the others by earlier times of the same stage.
            if i == 0 and share > 0:
                total += (time.monotonic() - self._start) * (1 - share) / share
            elif name in self._took:
                total += self._took[name]
            else:
                total += sum(self._took.values()) / len(self._took) if self._took else self._estimate
        return total

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the first step, which is not 0 for a resumed stage."""
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Print how much of the stage is done, at most every 15 seconds."""
        now = time.monotonic()
        if now - self._printed < REPORT_INTERVAL:
            return
        self._printed = now
        # The steps of this process; infinite for a training without a limit, for which the share stays 0.
        steps = float(trainer.estimated_stepping_batches) - self._first_step
        share = (trainer.global_step - self._first_step) / steps if steps > 0 else 0.0
        left = seconds(self.seconds_left(min(max(share, 0.0), 1.0)))
        print(f"  {self.left[0]}: {share:.0%} trained, about {left} left in all", file=self._out, flush=True)
