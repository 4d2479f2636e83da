"""Interactive page of a study, drawn by Optuna with plotly; a single file that needs no network."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
import plotly.io
from optuna import visualization
from plotly.graph_objects import Figure

from lit_mnist.sweeps.study.summary import StudySummary

FONT = {"family": "system-ui, DejaVu Sans, sans-serif", "size": 13, "color": "#222222"}


def page(
    study: optuna.Study,
    summary: StudySummary,
    importances: Mapping[str, float],
    pair: tuple[str, str] | None,
) -> str:
    """HTML with every figure that the study has enough trials for.

    Args:
        study: The study, with at least one complete trial.
        summary: The same study, as read.
        importances: By parameter; empty if they are not known.
        pair: The parameters of the contour plot; None for no contour plot.

    """
    metric = summary.objectives[0]
    # Optuna wants a target where there are several objectives, and none where there is one.
    target: Callable[[Any], float] | None = None
    if len(summary.objectives) > 1:
        target = lambda trial: trial.values[0]  # noqa: E731
    named: dict[str, Any] = {"target": target, "target_name": metric}
    figures = {f"{summary.name}: {metric} by trial": visualization.plot_optimization_history(study, **named)}
    if len(summary.objectives) == 2:
        figures["Pareto front"] = visualization.plot_pareto_front(study, target_names=list(summary.objectives))
    if importances:
        # Not Optuna's plot, which would estimate the importances again and include parameters that never varied.
        names = list(importances)[::-1]
        bars = {"type": "bar", "orientation": "h", "x": [importances[name] for name in names], "y": names}
        layout = {"xaxis": {"title": "share", "tickformat": ".0%"}, "yaxis": {"automargin": True}}
        figures[f"parameter importances for {metric}"] = Figure([bars], layout)
        figures["all parameters"] = visualization.plot_parallel_coordinate(
            study, params=list(importances), **named
        )
    if pair is not None:
        heading = f"{metric} over {pair[0]} and {pair[1]}"
        figures[heading] = visualization.plot_contour(study, params=list(pair), **named)
    parts = [f"<!doctype html><meta charset='utf-8'><title>{summary.name}</title>"]
    for i, (heading, figure) in enumerate(figures.items()):
        figure.update_layout(title=heading, font=FONT, template="plotly_white", height=520)
        # plotly.js is 5 MB: only the first figure brings it.
        parts.append(plotly.io.to_html(figure, include_plotlyjs=i == 0, full_html=False))
    return "\n".join(parts)
