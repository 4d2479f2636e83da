"""Stored results: a JSON file per experiment, into which each run of `reproduce` merges its seeds.

    {"experiment": "zhang/cnn", "length": "full", "settings": {STAGE: KEY}, "command": …, "filter": …,
     "seeds": {"0": {"values": {NAME: NUMBER}, "runs": {STAGE: RUN ID}, "seconds", "date", "commit", "versions",
               "device", "platform"}},
     "claims": [{"claim", "number", "rule", "margin", "paper", "ours", "interval", "seeds", "verdict", "why", "p",
                 "p_sign_flip", "seeds_needed"}], "finding", "figures": [FILE NAME]}

The results of shortened trainings are in a separate file, `EXPERIMENT.quick.json`, and have no verdicts.
"""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from lit_mnist.errors import UserError
from lit_mnist.papers.report.claims import judge
from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.terminal import note
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.queries.statistics import Summary, summarise
from lit_mnist.tracking.store import find_store
from lit_mnist.training.stages import Preset, stage_key

Result = dict[str, Any]
Length = Literal["full", "quick"]
PAGE = Path("docs", "results.md")
"""The page with the table of results, relative to the project's folder."""


def length_of(experiment: Experiment, preset: Preset) -> Length:
    """The length of the trainings; "full" if the quick preset does not shorten this experiment."""
    return "quick" if preset == "quick" and experiment.cut else "full"


def results_folder(given: str | None = None) -> Path:
    """The folder of the results: `given`, or docs/results in a checkout, or else mlruns/reproduce."""
    if given is not None:
        return Path(given).expanduser()
    # In a checkout, results are part of the repository; elsewhere they are stored next to the runs.
    store = find_store()
    return (
        store.home.parent / "docs" / "results" if (store.home.parent / PAGE).exists() else store.home / "reproduce"
    )


def result_path(folder: Path, experiment: Experiment, length: Length) -> Path:
    """Path of the experiment's results."""
    # Two files, since seeds of shortened and full trainings must not be averaged.
    suffix = ".quick.json" if length == "quick" else ".json"
    return folder / experiment.paper / f"{experiment.name}{suffix}"


def settings(experiment: Experiment, length: Length) -> dict[str, str]:
    """For each stage, a hash of everything that affects its weights except the seed."""
    # Always with seed 0, since the key includes the seed, which differs between the entries of one result.
    return {name: stage_key(stage, length, 0) for name, stage in experiment.stages.items()}


def seed_entry(values: Mapping[str, float], runs: Mapping[str, str], seconds: float) -> Result:
    """The stored entry of one seed: its numbers, its stages' runs, their training time, and the environment."""
    # The environment is stored because rounding differs between machines and versions.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "values": dict(values),
        "runs": dict(runs),
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_circumstances(device),
    }


def merge_result(
    path: Path, experiment: Experiment, length: Length, seeds: Mapping[int, Result], replace: bool = False
) -> Result:
    """Add `seeds` to the results at `path`, judge all claims again, and write the file atomically.

    Args:
        path: The file; it need not exist.
        experiment: The experiment.
        length: Length of the trainings.
        seeds: Entries (`seed_entry`) by seed, which replace stored entries of the same seeds.
        replace: Remove the stored seeds instead of adding to them.

    Raises:
        UserError: the file was written with other settings.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # several processes may each train some of the seeds
        # Read under the lock, so that seeds added by another process are not lost.
        kept = None if replace else read_result(path)
        check_settings(path, experiment, length, kept)
        entries = dict(kept["seeds"]) if kept else {}
        for seed, entry in seeds.items():
            former = entries.get(str(seed))
            # Keep the stored entry, with its date and environment, if the same runs have given the same values
            # again.
            if former is None or (former["runs"], former["values"]) != (entry["runs"], entry["values"]):
                entries[str(seed)] = entry
        result = _assemble(experiment, length, {seed: entries[seed] for seed in sorted(entries, key=int)})
        result["figures"] = kept["figures"] if kept else []
        write_result(path, result)
    return result


def judge_again(folder: Path, experiment: Experiment) -> None:
    """Judge the stored seeds of `experiment` by its current claims, unless they have other settings."""
    for length in ("full", "quick"):
        path = result_path(folder, experiment, length)
        if (kept := read_result(path)) is None:
            continue
        if kept["settings"] == settings(experiment, length):
            merge_result(path, experiment, length, {})
        else:
            note(f"{path} was measured with other settings and does not count: --replace starts it afresh")


def add_figures(path: Path, names: Sequence[str]) -> Result:
    """Add the figures `names`, which are in the same folder, to the results at `path`."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        result = read_result(path)
        assert result is not None, "merge_result has written it"
        # The new figures first, since the page shows the first one; earlier figures still exist.
        result["figures"] = list(dict.fromkeys([*names, *result["figures"]]))
        write_result(path, result)
    return result


def check_settings(path: Path, experiment: Experiment, length: Length, kept: Result | None) -> None:
    """Check that new seeds can be added to the result `kept`, which was read from `path`.

    Raises:
        UserError: the settings of a stage differ from those of the stored seeds.

    """
    if kept is not None and kept["settings"] != (new := settings(experiment, length)):
        old = kept["settings"]
        changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        raise UserError(
            f"{path} was measured with other settings of {', '.join(changed)}: --replace starts it afresh;"
            " --results FOLDER keeps it"
        )


def summaries_of(result: Result) -> dict[str, Summary]:
    """Mean and interval of each number over the seeds that have it."""
    # Older entries may lack numbers that were added later.
    rows = [entry["values"] for entry in result["seeds"].values()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: summarise([row[name] for row in rows if name in row]) for name in names}


def seeds_shown(result: Result) -> str:
    """The number of stored seeds as text: `1 seed`, `3 seeds`."""
    count = len(result["seeds"])
    return f"{count} seed{'' if count == 1 else 's'}"


def write_result(path: Path, result: Result) -> None:
    """Write the JSON file atomically."""
    replace_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read_result(path: Path) -> Result | None:
    """Read results; None if there are none.

    Raises:
        UserError: the file is damaged or has another format. It is not overwritten, since it may hold hours of
            training.

    """
    try:
        result = json.loads(path.read_text())
        # Required keys.
        complete = isinstance(result, dict) and {"experiment", "seeds", "settings", "claims"} <= result.keys()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not complete:
        raise UserError(f"{path} is not a file of results: move it away")
    return dict(result)


def best_result(folder: Path, experiment: Experiment) -> Result | None:
    """The result at full length, otherwise the shortened one; None if neither has the current settings."""
    # Results with other settings stay on disk, but do not count for the current experiment.
    for length in ("full", "quick"):
        kept = read_result(result_path(folder, experiment, length))
        if kept is not None and kept["settings"] == settings(experiment, length):
            return kept
    return None


def _assemble(experiment: Experiment, length: Length, entries: Mapping[str, Result]) -> Result:
    cut = experiment.cut if length == "quick" else ""
    rows = {int(seed): entry["values"] for seed, entry in entries.items()}
    result: Result = {
        "experiment": experiment.id,
        "title": experiment.title,
        "length": length,
        "cut": cut,
        "command": f"lit-mnist reproduce {experiment.id} --preset {length} --seeds {seed_list(list(rows))}",
        "filter": f"tags.`{stage_tag(experiment)}` = '{length}'",
        "settings": settings(experiment, length),
        "seeds": dict(entries),
    }
    # One entry per claim, with numbers and their text in tables.
    summaries = summaries_of(result)
    result["claims"] = []
    judgements = judge(experiment.claims, rows, cut, experiment.fewest_seeds)
    for claim, judgement in zip(experiment.claims, judgements, strict=True):
        ours = summaries.get(claim.key)
        mean, interval = (ours.mean, ours.interval) if ours else (None, None)
        result["claims"].append({
            "claim": claim.text,
            "number": claim.key,
            "rule": claim.show_rule(),
            "margin": claim.margin,
            "paper": claim.paper,
            "paper_shown": claim.show(claim.paper),
            "ours": mean,
            "interval": interval,
            "ours_shown": claim.show(mean, interval),
            "seeds": len(ours.values) if ours else 0,
            "verdict": judgement.verdict,
            "why": judgement.why,
            "p": judgement.p,
            "p_sign_flip": judgement.p_sign_flip,
            "seeds_needed": judgement.seeds_needed,
        })  # fmt: skip
    try:
        text = experiment.finding.format_map({name: s.mean for name, s in summaries.items()})
        # As in the tables, with a space before the percent sign.
        result["finding"] = re.sub(r"(?<=\d)%", " %", text)
    except KeyError:  # no stored seed has the number
        result["finding"] = ""
    return result


def stage_tag(experiment: Experiment) -> str:
    """The tag of the runs of an experiment; its value is the length of the trainings."""
    return f"reproduce.{experiment.id}"


def seed_list(seeds: Sequence[int]) -> str:
    """Format seeds as a value of `--seeds`: `10` for 0 to 9, or ranges such as `5-9,12-12`."""
    # 0 to n - 1 is a plain count; anything else is written as ranges.
    ordered = sorted(seeds)
    if ordered == list(range(len(ordered))):
        return str(len(ordered))
    ranges: list[list[int]] = []
    for seed in ordered:
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    # A single seed is written as a range too, since a plain number is a count.
    return ",".join(f"{first}-{last}" for first, last in ranges)


@cache  # git and package metadata are read once, not for every seed
def _circumstances(device: str) -> Result:
    versions = version_tags(package_versions())
    # Only changes of the code count: the results themselves change with every seed.
    state = git_state(exclude=("docs/results", str(PAGE)))
    changed = "" if state.get("git.dirty") == "false" else " with uncommitted changes"
    if digest := state.get("code.digest"):  # a submitted job runs a copy of the code
        changed = f" (code {digest})"
    return {
        "commit": state["mlflow.source.git.commit"] + changed,
        "versions": {name.removeprefix("version."): version for name, version in versions.items()},
        "device": device_tags(device, 1)["device"],
        "platform": platform.platform(),
    }
