"""`lit-mnist reproduce`: train, measure and judge the experiments of the papers on this machine."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_mnist.errors import Interrupted
from lit_mnist.papers.report.experiment import Experiment, experiments, select
from lit_mnist.papers.report.results import Result, make_result, read_result, result_path, write_result
from lit_mnist.papers.report.trained import TrainedStage
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import print_table, seconds
from lit_mnist.tracking.queries.statistics import summarise
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.stages import SECONDS, Preset, find_stage, stage_key, train_stage

REPORT_INTERVAL = 15.0
"""Seconds between two progress lines of the same stage."""


def reproduce(names: Sequence[str], every: bool, seeds: int, preset: Preset) -> None:
    """Run experiments by name, or all of them; list them if there are neither.

    Raises:
        UserError: there is no such experiment, or a training has failed.
        Interrupted: a signal arrived; the same command continues.

    """
    chosen = experiments() if every else select(names)
    if not chosen:
        list_experiments()
        return
    with SignalWatch() as watch:
        for experiment in chosen:
            run_experiment(experiment, preset, range(seeds), watch)


def list_experiments() -> None:
    """Print each experiment: its claims, what was measured on this machine, and how long it takes."""
    rows = []
    for experiment in experiments():
        results = [read_result(experiment, preset) for preset in ("quick", "full")]
        duration = ", ".join(seconds(60 * experiment.minutes[preset]) for preset in ("quick", "full"))
        head = experiment.id
        for claim in experiment.claims:
            if claim.rule is None:
                continue
            cells = []
            for result in results:
                # By number, not by text: a claim that was reworded still finds its stored result.
                stored = [each for each in result["claims"] if each["number"] == claim.key] if result else []
                cells.append(f"{stored[0]['ours_shown']}: {stored[0]['verdict']}" if stored else "–")
            rows.append([head, claim.text, claim.show(claim.paper), *cells, duration])
            head = duration = ""
    print_table(["experiment", "what the paper says", "paper", "here: quick", "here: full", "quick, full"], rows)
    print("\n`lit-mnist reproduce zhang/cnn` checks one; times are those of 3 seeds on two cores")


def run_experiment(experiment: Experiment, preset: Preset, seeds: Sequence[int], watch: SignalWatch) -> Result:
    """Reproduce one experiment: train its missing stages, measure, judge, draw, store and print the result.

    Raises:
        Interrupted: a signal arrived; the next call continues.
        UserError: a training has failed.

    """
    watch.check()
    print(f"{experiment.id}: {experiment.title}", flush=True)
    if preset == "quick" and experiment.cut:
        print(f"  quick: {experiment.cut}", flush=True)
    try:
        by_seed = _train(experiment, preset, seeds, watch)
        values = []
        for runs in by_seed:
            values.append(experiment.measure(runs))
            watch.check()
    except Interrupted:
        print(f"{experiment.id} stopped; the same command continues it", flush=True)
        raise
    summaries = {key: summarise([row[key] for row in values]) for key in values[0]}
    run_ids = [{name: stage.run_id for name, stage in runs.items()} for runs in by_seed]
    stages = {stage.run_id: stage for runs in by_seed for stage in runs.values()}
    took = sum(float(s.client.get_run(run_id).data.tags.get(SECONDS, 0)) for run_id, s in stages.items())
    result = make_result(experiment, preset, seeds, summaries, run_ids, took)

    path = result_path(experiment, preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Drawn before the run is opened: an error while drawing leaves no FAILED run behind.
    drawn = experiment.draw(by_seed, summaries)
    with open_run(f"reproduce/{experiment.paper}", f"{experiment.name} {preset}", system_metrics=False) as run:
        run.log_params({"experiment": experiment.id, "preset": preset, "seeds": list(seeds)})
        run.log_metrics({key: summary.mean for key, summary in summaries.items()}, 0)
        run.set_tags({f"verdict.{i}": claim["verdict"] for i, claim in enumerate(result["claims"], 1)})
        figures = {}
        for name, figure in drawn.items():
            image = path.with_suffix(f".{name}.png")
            figure.savefig(image, dpi=120)
            run.log_file(image, "figures")
            figures[name] = str(image)
        result |= {"run": run.id, "figures": figures, "json": str(path)}
        write_result(path, result)
        run.log_file(path, "results")
    _print_result(result)
    return result


def _train(
    experiment: Experiment, preset: Preset, seeds: Sequence[int], watch: SignalWatch
) -> list[dict[str, TrainedStage]]:
    """Train what is missing; returns the finished stages of each seed, by name."""
    store = find_store()
    client = connect(store)
    keys = {(seed, name): stage_key(s, preset, seed) for seed in seeds for name, s in experiment.stages.items()}
    found = {item: find_stage(client, key) for item, key in keys.items()}
    missing = [item for item, run in found.items() if run is None or run.info.status != "FINISHED"]
    # The experiment's estimate is for three seeds and all stages.
    estimate = experiment.minutes[preset] * 60 * len(seeds) / 3 * len(missing) / len(keys)
    progress = StageProgress(experiment.id, [name for _, name in missing], estimate)
    if missing:
        left = seconds(progress.seconds_left())
        print(f"  to train: {len(missing)} of {len(keys)} stages, about {left}", flush=True)
    else:
        print(f"  all {len(keys)} stages are finished already", flush=True)
    trained: dict[int, dict[str, TrainedStage]] = {seed: {} for seed in seeds}
    for seed, name in keys:
        if (seed, name) in missing:
            progress.begin()
        run_id = train_stage(experiment.stages[name], preset, seed, watch, [progress])
        if (seed, name) in missing:
            progress.end(f"{name} seed {seed}")
        trained[seed][name] = TrainedStage(run_id, client, store, watch)
    return list(trained.values())


def _print_result(result: Result) -> None:
    rows = [[c["claim"], c["paper_shown"], c["ours_shown"], c["verdict"]] for c in result["claims"]]
    count = len(result["seeds"])
    title = f"\n{result['experiment']}, {result['preset']} preset, {count} {'seed' if count == 1 else 'seeds'}"
    print_table(["claim", "paper", "ours", "verdict"], rows, title)
    if result["finding"]:
        print(result["finding"])
    for path in (*result["figures"].values(), result["json"]):
        print(path)


class StageProgress(Callback):
    """Prints a line when a stage ends, and now and then while it trains.

    The remaining time counts for each stage what the same stage took with an earlier seed; if there was none, the
    mean of the stages so far; before any has ended, the experiment's own estimate.

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
        self._took[self.left.pop(0)] = took = time.monotonic() - self._start
        left = f", about {seconds(self.seconds_left())} left" if self.left else ""
        done = f"{self.total - len(self.left)} of {self.total} stages"
        print(f"{self.title}: {done}, {what} in {seconds(took)}{left}", file=self._out, flush=True)

    def seconds_left(self, share: float = 0.0) -> float:
        """Estimate the seconds until all stages are trained, when `share` of the current one is done."""
        total = 0.0
        for i, name in enumerate(self.left):
            if i == 0 and share > 0:
                total += (time.monotonic() - self._start) * (1 - share) / share
            elif name in self._took:
                total += self._took[name]
            else:
                total += sum(self._took.values()) / len(self._took) if self._took else self._estimate
        return total

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the first step: a resumed stage does not begin at 0."""
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Print how much of the stage is done, at most every 15 seconds."""
        now = time.monotonic()
        if now - self._printed < REPORT_INTERVAL:
            return
        self._printed = now
        steps = float(trainer.estimated_stepping_batches) - self._first_step
        share = (trainer.global_step - self._first_step) / steps if steps > 0 else 0.0
        left = seconds(self.seconds_left(min(max(share, 0.0), 1.0)))
        print(f"  {self.left[0]}: {share:.0%} trained, about {left} left in all", file=self._out, flush=True)
