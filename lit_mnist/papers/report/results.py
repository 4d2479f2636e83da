"""Results as files: one JSON per experiment and preset, for machines and for the README's table."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_mnist.papers.report.experiment import Experiment
from lit_mnist.tracking.journal.journal import replace_text
from lit_mnist.tracking.provenance import device_tags, git_state, package_versions, version_tags
from lit_mnist.tracking.queries.statistics import Summary, summarise
from lit_mnist.tracking.store import find_store
from lit_mnist.training.stages import Preset

Result = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """All that an experiment's seeds have given."""

    seeds: Sequence[int]
    values: Sequence[Mapping[str, float]]
    run_ids: Sequence[Mapping[str, str]]
    seconds: float
    """Of the stages' trainings, whenever they were."""

    def summaries(self) -> dict[str, Summary]:
        """Mean and interval of every number."""
        return {key: summarise([row[key] for row in self.values]) for key in self.values[0]}


def result_path(experiment: Experiment, preset: Preset) -> Path:
    """Where the result lies."""
    return find_store().home / "reproduce" / experiment.paper / f"{experiment.name}.{preset}.json"


def make_result(experiment: Experiment, preset: Preset, measured: Measured) -> Result:
    """The result as plain types, each claim with its verdict."""
    from datetime import UTC, datetime

    versions = version_tags(package_versions())
    summaries = measured.summaries()
    return {
        "experiment": experiment.id,
        "title": experiment.title,
        "preset": preset,
        "cut": experiment.cut if preset == "quick" else "",
        "seeds": list(measured.seeds),
        "values": {key: list(summary.values) for key, summary in summaries.items()},
        "mean": {key: summary.mean for key, summary in summaries.items()},
        "interval": {key: summary.interval for key, summary in summaries.items()},
        "claims": judged(experiment, summaries),
        "finding": experiment.finding.format_map({key: summary.mean for key, summary in summaries.items()}),
        "runs": [dict(ids) for ids in measured.run_ids],
        "seconds": round(measured.seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name.removeprefix("version."): version for name, version in versions.items()},
        "commit": git_state()["mlflow.source.git.commit"],
        "device": device_tags(_device(), 1)["device"],
        "platform": platform.platform(),
    }


def judged(experiment: Experiment, summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """Each claim beside our number, and the verdict."""
    return [
        {
            "claim": claim.text,
            "number": claim.key,
            "rule": None if claim.rule is None else str(claim.rule),
            "paper": claim.paper,
            "paper_shown": claim.show(claim.paper),
            "ours": summaries[claim.key].mean,
            "interval": summaries[claim.key].interval,
            "ours_shown": claim.show_summary(summaries[claim.key].mean, summaries[claim.key].interval),
            "verdict": claim.verdict(summaries),
        }
        for claim in experiment.claims
    ]


def write_result(path: Path, result: Result) -> None:
    """Write the JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(result, indent=1, ensure_ascii=False))


def read_result(experiment: Experiment, preset: Preset) -> Result | None:
    """What was measured on this machine; None where nothing was, or the file does not read."""
    try:
        result = json.loads(result_path(experiment, preset).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("experiment") == experiment.id else None


def latest_result(experiment: Experiment) -> Result | None:
    """The full preset's result, or else the quick one's."""
    return read_result(experiment, "full") or read_result(experiment, "quick")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
