"""The description of a study in MLflow's UI: the best point, its uncertainty, and the next commands."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from lit_mnist.sweeps.study.storage import is_confirmation
from lit_mnist.sweeps.study.summary import (
    StudySummary,
    is_allowed,
    point,
    runs,
    show,
    show_short,
    show_values,
)
from lit_mnist.tracking.descriptions import code, escape, image, join, link, table, with_comments
from lit_mnist.tracking.mlflow_private import ui_path
from lit_mnist.tracking.queries.metrics import is_share
from lit_mnist.tracking.queries.statistics import paired, shares_differ, show_mean, summarise, wilson

BEST_TRIALS = 5
"""Rows of the table of the best trials."""
MOST_NAMED = 8
"""Maximum number of trials that are listed by name."""
VIEW = "trials"
"""Key of the saved view "trials, best first" of a study; those of its confirmations are in the same experiment."""


@dataclass(frozen=True)
class StudyPlace:
    """The location of a study in MLflow, and further data for its description."""

    experiment_id: str
    run_id: str
    command: str
    """The command that runs the study."""
    images: int | None = None
    """Number of validation images; None if unknown."""
    figures: Sequence[tuple[str, str]] = ()
    """Run and path of each artifact to show."""
    most_trials: int | None = None
    """Maximum number of trials of the study: the number of points of a grid; None without a limit."""
    confirmed: Sequence[str] = ()
    """What `lit-mnist sweep confirm` found, as lines."""


def view_key(name: str) -> str:
    """Return the key of the saved view of the study called `name`."""
    return name.rpartition("/")[2] if is_confirmation(name) else VIEW


def describe_study(summary: StudySummary, place: StudyPlace) -> str:
    """Return the study's description as Markdown, the result first, since the UI initially shows four lines."""
    ranked = best_first(summary)
    view = link("All trials, best first", ui_path(place.experiment_id, view=view_key(summary.name)))
    done, left = len(summary.finished), summary.budget - len(summary.finished)
    # The link to the view is in the first lines, which are visible before the description is unfolded.
    progress = f"{view}: {done} of {summary.budget} finished ({summary.counts()})."
    command = _without_trials(place.command)
    if is_confirmation(summary.name):  # its points are given, and `sweep confirm` has no --trials
        commands = {place.command: "the trials that are left"} if left > 0 else {}
    elif left <= 0:
        more = min(2 * summary.budget, place.most_trials or 2 * summary.budget)
        commands = {f"{command} --trials {more}": "more trials"} if more > summary.budget else {}
    elif "--trials" in place.command:
        commands = {place.command: "the trials that are left"}
    else:
        commands = {f"{command} --trials {summary.budget}": "the trials that are left"}
    lines = with_comments(commands | next_commands(summary))
    mistakes_of = (
        f"Trial {ranked[0].number}, the best, at its best checkpoint, on validation images" if ranked else ""
    )
    return join([
        f"{_answer(summary, place, ranked) if ranked else 'No trial is complete yet.'}\n{progress}",
        _tied(summary, place, ranked) if len(summary.objectives) == 1 and ranked else "",
        _confirmed(place.confirmed),
        _table(summary, place, ranked),
        f"How to go on:\n\n{code(*lines)}",
        *(
            ("" if run == place.run_id else f"{mistakes_of}:\n\n") + image(run, path)
            for run, path in place.figures
        ),
    ])  # fmt: skip


def _confirmed(lines: Sequence[str]) -> str:
    """The lines of a confirmation as a heading and a list; empty if there are none."""
    if not lines:
        return ""
    return "\n".join([escape(lines[0][0].upper() + lines[0][1:]), *(f"- {escape(line)}" for line in lines[1:])])


def next_commands(summary: StudySummary) -> dict[str, str]:
    """Return the next commands for a study, each with its explanation, the most useful one first."""
    is_unsure = len(summary.seeds) == 1 and len(summary.objectives) == 1 and len(summary.complete) > 1
    name, page = summary.arguments, shlex.quote(f"{summary.name.replace('/', '_')}.html")
    return {
        **({f"lit-mnist sweep confirm {name} --top 3 --seeds 5": "is the best trial really the best?"}
           if is_unsure else {}),
        f"lit-mnist sweep best {name}": "write the best configuration to a file",
        f"lit-mnist compare --study {shlex.quote(summary.name)} --html {page}": "a table of all trials",
    }  # fmt: skip


def closing_lines(summary: StudySummary, page: str, images: int | None = None) -> list[str]:
    """Return the last lines of a sweep's output: the best point, the study's page, and the next command.

    Args:
        summary: The study.
        page: The line with the address of its page; empty if it has none.
        images: Number of validation images, for the interval; None if unknown.

    """
    ranked = best_first(summary)
    # A confirmation numbers its trials differently: its results are shown for those of its study.
    if not ranked or is_confirmation(summary.name):
        return [page] if page else []
    best, values = ranked[0], show_values(summary, ranked[0])
    if len(summary.objectives) == 1:
        values = f"{summary.objectives[0]} {show_result(summary, best, images)}"
    lines = [f"best: trial {best.number}, {values}; {show_short(point(best))}"]
    if len(ranked) > 1 < len(summary.objectives):
        lines.append(f"      of {len(ranked)} on the Pareto front, the one with the best {summary.objectives[0]}")
    return [*lines, *([page] if page else []), f"next: {next(iter(next_commands(summary)))}"]


def best_first(summary: StudySummary) -> list[FrozenTrial]:
    """Return the complete trials that satisfy the constraints, best first; for several objectives the front."""
    if len(summary.objectives) > 1:
        return summary.best()
    allowed = [trial for trial in summary.complete if is_allowed(trial)]
    return sorted(allowed, key=lambda trial: (summary.cost(trial)[0], trial.number))


def bounds(summary: StudySummary, trial: FrozenTrial, images: int | None) -> tuple[float, float] | None:
    """Return the 95 % interval of a complete trial's first objective; None if unknown.

    It is Student's interval for several seeds, otherwise the binomial interval of a share of `images` images.
    """
    # With several seeds their spread is known; with one seed, only the sampling error of a share is.
    values = seed_values(trial)
    if len(values) > 1:
        seeds = summarise(values)
        return seeds.mean - (seeds.interval or 0.0), seeds.mean + (seeds.interval or 0.0)
    if is_share(summary.objectives[0]) and images:
        return wilson(trial.values[0], images)
    return None


def show_result(summary: StudySummary, trial: FrozenTrial, images: int | None) -> str:
    """Return a complete trial's first objective with its interval, such as `0.783 ± 0.052`."""
    limits, value = bounds(summary, trial, images), trial.values[0]
    # A binomial interval is not symmetric about the value; half its width is shown after ±.
    return show_mean(value, None if limits is None else (limits[1] - limits[0]) / 2)


def ties(summary: StudySummary, ranked: Sequence[FrozenTrial], images: int | None) -> list[int] | None:
    """Return the numbers of the trials that do not differ significantly from the first; None without an interval.

    With several seeds, the interval of the paired difference includes 0. With a single seed, the interval of the
    difference of two shares of validation images does. The latter test is conservative, since both trials have the
    same images.
    """
    best, found = ranked[0], []
    for trial in ranked[1:]:
        first, second = seed_values(best), seed_values(trial)
        if len(first) > 1:
            # All trials of a study have the same order of seeds, so values are paired by position.
            difference = paired(_by_position(first), _by_position(second))
            same = difference is None or abs(difference.mean) <= (difference.interval or 0.0)
        elif is_share(summary.objectives[0]) and images:
            same = not shares_differ(best.values[0], trial.values[0], images)
        else:
            return None
        if same:
            found.append(trial.number)
    return found


def seed_values(trial: FrozenTrial) -> list[float]:
    """Return the first objective of each seed of a complete trial."""
    values = [objectives[0] for objectives in trial.user_attrs.get("values", [])]
    return values or [trial.values[0]]


def trial_run(trial: FrozenTrial) -> str | None:
    """Return the id of the run that represents the trial: the group run of several seeds, or the only run."""
    ids = runs(trial)
    return trial.user_attrs.get("group") or (ids[0] if ids else None)


def _answer(summary: StudySummary, place: StudyPlace, ranked: Sequence[FrozenTrial]) -> str:
    best, metric = ranked[0], summary.objectives[0]
    values = _show_point(point(best))
    if len(summary.objectives) > 1:
        listed = (
            f"; in the table the {BEST_TRIALS} with the best {escape(metric)}" if len(ranked) > BEST_TRIALS else ""
        )
        others = f" {len(ranked)} trials are on the Pareto front{listed}." if len(ranked) > 1 else ""
        shown = ", ".join(
            f"{escape(name)} **{show_mean(value, None)}**"
            for name, value in zip(summary.objectives, best.values, strict=True)
        )
        return f"Best {escape(metric)}: {_link(place, best)}, {shown}, with {values}.{others}"
    limits = bounds(summary, best, place.images)
    shown = f"{escape(metric)} **{show_result(summary, best, place.images)}**"
    if limits is None:
        how = "one seed, so how sure that is is not known"
    elif len(seed_values(best)) > 1:
        how = f"mean of {len(seed_values(best))} seeds, 95 % interval"
    else:
        span = f"{limits[0]:.3f} to {limits[1]:.3f}"
        how = f"one seed; 95 % binomial interval {span} from {place.images:,} validation images"
    return f"Best: {_link(place, best)}, {shown} ({how}), with {values}."


def _tied(summary: StudySummary, place: StudyPlace, ranked: Sequence[FrozenTrial]) -> str:
    tied = ties(summary, ranked, place.images)
    if tied is None:
        return "One seed does not tell whether other trials are as good; `sweep confirm` does, with more seeds."
    if not tied:
        return (
            "All other complete trials are worse: 0 is outside the 95 % interval of each difference."
            if len(ranked) > 1
            else ""
        )
    by_number = {trial.number: trial for trial in ranked}
    named = ", ".join(_link(place, by_number[number]) for number in tied[:MOST_NAMED])
    rest = f" and {len(tied) - MOST_NAMED} more" if len(tied) > MOST_NAMED else ""
    return (
        f"Possibly as good, {len(tied)} of the {len(ranked) - 1} others: {named}{rest}"
        " (the 95 % interval of the difference includes 0)."
    )


def _table(summary: StudySummary, place: StudyPlace, ranked: Sequence[FrozenTrial]) -> str:
    shown = ranked[:BEST_TRIALS]
    names = list(dict.fromkeys(name for trial in shown for name in point(trial)))
    rows = []
    for trial in shown:
        results = [show_result(summary, trial, place.images)]
        results += [show_mean(value, None) for value in trial.values[1:]]
        values = [escape(show(point(trial)[name])) if name in point(trial) else "–" for name in names]
        rows.append([_link(place, trial), *results, *values])
    head = ["trial", *map(escape, summary.objectives), *(escape(name.rpartition(".")[2]) for name in names)]
    return table(head, rows) if rows else ""


def _link(place: StudyPlace, trial: FrozenTrial) -> str:
    text, run = f"trial {trial.number}", trial_run(trial)
    return escape(text) if run is None else link(text, ui_path(place.experiment_id, run))


def _show_point(values: Mapping[str, object]) -> str:
    return ", ".join(f"{escape(name.rpartition('.')[2])} {escape(show(value))}" for name, value in values.items())


def _by_position(values: Sequence[float]) -> dict[str, float]:
    return {str(i): value for i, value in enumerate(values)}


def _without_trials(command: str) -> str:
    """Return a sweep's command without the number of trials."""
    words = command.split(" ")
    while "--trials" in words:
        at = words.index("--trials")
        del words[at : at + 2]
    return " ".join(word for word in words if not word.startswith("--trials="))
