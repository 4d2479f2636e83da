"""Stored results: one JSON file per experiment and preset, read by `reproduce` and by `reproduce --table`."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.queries.statistics import Summary
from lit_mnist.tracking.store import find_store
from lit_mnist.training.stages import Preset

Result = dict[str, Any]


def make_result(
    experiment: Experiment,
    preset: Preset,
    seeds: Sequence[int],
    summaries: Mapping[str, Summary],
    run_ids: Sequence[Mapping[str, str]],
    seconds: float,
) -> Result:
    """Build the result, of plain types, with a verdict for each claim.

    Args:
        experiment: What was run.
        preset: Its length.
        seeds: In the order of the values in `summaries`.
        summaries: The measured numbers.
        run_ids: For each seed the ids of its stages' runs, by stage.
        seconds: Training time of all stages, whenever they were trained.

    """
    means = {key: summary.mean for key, summary in summaries.items()}
    claims = []
    for claim in experiment.claims:
        ours = summaries[claim.key]
        claims.append({
            "claim": claim.text,
            "number": claim.key,
            "rule": None if claim.rule is None else claim.rule.text,
            "paper": claim.paper,
            "paper_shown": claim.show(claim.paper),
            "ours": ours.mean,
            "interval": ours.interval,
            "ours_shown": claim.show(ours.mean, ours.interval),
            "verdict": claim.verdict(summaries),
        })  # fmt: skip
    versions = version_tags(package_versions())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "experiment": experiment.id,
        "title": experiment.title,
        "preset": preset,
        "cut": experiment.cut if preset == "quick" else "",
        "seeds": list(seeds),
        "values": {key: list(summary.values) for key, summary in summaries.items()},
        "mean": means,
        "interval": {key: summary.interval for key, summary in summaries.items()},
        "claims": claims,
        "finding": experiment.finding.format_map(means),
        "runs": [dict(ids) for ids in run_ids],
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name.removeprefix("version."): version for name, version in versions.items()},
        "commit": git_state()["mlflow.source.git.commit"],
        "device": device_tags(device, 1)["device"],
        "platform": platform.platform(),
    }


def result_path(experiment: Experiment, preset: Preset) -> Path:
    """Path of the stored result."""
    return find_store().home / "reproduce" / experiment.paper / f"{experiment.name}.{preset}.json"


def write_result(path: Path, result: Result) -> None:
    """Write the JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(result, indent=1, ensure_ascii=False))


def read_result(experiment: Experiment, preset: Preset) -> Result | None:
    """Read a result that was measured on this machine; None if there is none, or the file is unreadable."""
    try:
        result = json.loads(result_path(experiment, preset).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("experiment") == experiment.id else None


def latest_result(experiment: Experiment) -> Result | None:
    """The result of the full preset, or else that of the quick one."""
    return read_result(experiment, "full") or read_result(experiment, "quick")
