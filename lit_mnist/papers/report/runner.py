"""Carries an experiment out: trains what is missing, measures, judges, draws, and writes it all down."""

from collections.abc import Sequence

from lit_mnist.errors import Interrupted
from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.papers.report.progress import Progress
from lit_mnist.papers.report.results import Measured, Result, make_result, result_path, write_result
from lit_mnist.papers.report.trained import Trained
from lit_mnist.signals import SignalWatch
from lit_mnist.terminal import print_table, seconds
from lit_mnist.tracking.run import open_run
from lit_mnist.tracking.store import connect, find_store
from lit_mnist.training.stages import SECONDS, Preset, find_stage, stage_key, train_stage


def run_experiment(experiment: Experiment, preset: Preset, seeds: Sequence[int], watch: SignalWatch) -> Result:
    """Reproduce one experiment; what MLflow has of it already is not trained again.

    Raises:
        Interrupted: a signal came; the next call goes on.
        UserError: a training has failed.

    """
    watch.check()
    _announce(experiment, preset, seeds)
    try:
        rows = _train(experiment, preset, seeds, watch)
        values = []
        for runs in rows:
            values.append(experiment.measure(runs))
            watch.check()
    except Interrupted:
        print(f"{experiment.id} stopped; the same command goes on with it", flush=True)
        raise
    measured = Measured(
        seeds, values, [{name: run.run_id for name, run in runs.items()} for runs in rows], _spent(rows)
    )
    result = make_result(experiment, preset, measured)
    _keep(experiment, preset, measured, rows, result)
    show(result)
    return result


def show(result: Result) -> None:
    """Print what the paper says, what we measured, and the verdicts."""
    rows = [[c["claim"], c["paper_shown"], c["ours_shown"], c["verdict"]] for c in result["claims"]]
    count = len(result["seeds"])
    title = f"\n{result['experiment']}, {result['preset']} preset, {count} {'seed' if count == 1 else 'seeds'}"
    print_table(["claim", "paper", "ours", "verdict"], rows, title)
    if result["finding"]:
        print(result["finding"])
    for path in (*result["figures"].values(), result["json"]):
        print(path)


def _announce(experiment: Experiment, preset: Preset, seeds: Sequence[int]) -> None:
    print(f"{experiment.id}: {experiment.title}", flush=True)
    if preset == "quick" and experiment.cut:
        print(f"  quick: {experiment.cut}", flush=True)


def _train(
    experiment: Experiment, preset: Preset, seeds: Sequence[int], watch: SignalWatch
) -> list[dict[str, Trained]]:
    """The finished stages of each seed."""
    store = find_store()
    client = connect(store)
    stages = [(seed, name, stage) for seed in seeds for name, stage in experiment.stages.items()]
    keys = {(seed, name): stage_key(stage, preset, seed) for seed, name, stage in stages}
    found = {item: find_stage(client, key) for item, key in keys.items()}
    missing = [item for item, run in found.items() if run is None or run.info.status != "FINISHED"]
    if not missing:
        print(f"  all {len(keys)} stages are finished already", flush=True)
    whole = experiment.minutes[preset] * 60 * len(seeds) / 3
    progress = Progress(experiment.id, [name for _, name in missing], whole * len(missing) / len(keys))
    if missing:
        print(
            f"  to train: {len(missing)} of {len(keys)} stages, about {seconds(progress.seconds_left())}",
            flush=True,
        )
    rows: dict[int, dict[str, Trained]] = {seed: {} for seed in seeds}
    for seed, name in keys:
        if (seed, name) in missing:
            progress.begin()
        run_id = train_stage(experiment.stages[name], preset, seed, watch, [progress])
        if (seed, name) in missing:
            progress.end(f"{name} seed {seed}")
        rows[seed][name] = Trained(run_id, client, store, watch)
    return list(rows.values())


def _spent(rows: Sequence[dict[str, Trained]]) -> float:
    """Seconds that the stages took to train."""
    runs = {run.run_id: run for row in rows for run in row.values()}
    return sum(float(run.client.get_run(id_).data.tags.get(SECONDS, 0)) for id_, run in runs.items())


def _keep(
    experiment: Experiment, preset: Preset, measured: Measured, rows: Sequence[dict[str, Trained]], result: Result
) -> None:
    """Log the result and its figure as a run of its own, and write the JSON."""
    path = result_path(experiment, preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    summaries = measured.summaries()
    drawn = experiment.draw(rows, summaries)
    images = {name: path.with_suffix(f".{name}.png") for name in drawn}
    with open_run(f"reproduce/{experiment.paper}", f"{experiment.name} {preset}", system_metrics=False) as run:
        run.log_params({"experiment": experiment.id, "preset": preset, "seeds": list(measured.seeds)})
        run.log_metrics({key: summary.mean for key, summary in summaries.items()}, 0)
        run.set_tags({f"verdict.{i}": claim["verdict"] for i, claim in enumerate(result["claims"], 1)})
        for name, figure in drawn.items():
            figure.savefig(images[name], dpi=120)
            run.log_file(images[name], "figures")
        figures = {name: str(image) for name, image in images.items()}
        result |= {"run": run.id, "figures": figures, "json": str(path)}
        write_result(path, result)
        run.log_file(path, "results")
