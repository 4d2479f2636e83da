"""A study's figures to explore in a browser: one page, which needs no other file."""

from collections.abc import Callable
from typing import Any

import optuna
import plotly.io
from optuna import visualization
from plotly.graph_objects import Figure

from lit_mnist.sweeps.study.summary import StudySummary

FONT = {"family": "system-ui, DejaVu Sans, sans-serif", "size": 13, "color": "#222222"}


def page(study: optuna.Study, found: StudySummary, shares: dict[str, float], pair: tuple[str, str] | None) -> str:
    """HTML with every figure that the study has enough trials for; plotly's 5 MB are in it once.

    Args:
        study: The study, with a complete trial at least.
        found: What it has come to.
        shares: The importance of each parameter; empty where it is not known.
        pair: The parameters of the map, None without one.

    """
    figures = _figures(study, found, shares, pair)
    parts = [f"<!doctype html><meta charset='utf-8'><title>{found.name}</title>"]
    for i, (heading, figure) in enumerate(figures.items()):
        figure.update_layout(title=heading, font=FONT, template="plotly_white", height=520)
        parts.append(plotly.io.to_html(figure, include_plotlyjs=i == 0, full_html=False))
    return "\n".join(parts)


def _figures(
    study: optuna.Study, found: StudySummary, shares: dict[str, float], pair: tuple[str, str] | None
) -> dict[str, Figure]:
    """By their headings."""
    goal = found.objectives[0]
    target: Callable[[Any], float] | None = None if len(found.objectives) == 1 else lambda trial: trial.values[0]
    named: dict[str, Any] = {"target": target, "target_name": goal}
    figures = {f"{found.name}: {goal}, trial by trial": visualization.plot_optimization_history(study, **named)}
    if len(found.objectives) == 2:
        figures["Pareto front"] = visualization.plot_pareto_front(study, target_names=list(found.objectives))
    if shares:
        figures[f"importance for {goal}"] = _bars(shares)
        figures["all parameters"] = visualization.plot_parallel_coordinate(study, params=list(shares), **named)
    if pair is not None:
        heading = f"{goal} over {pair[0]} and {pair[1]}"
        figures[heading] = visualization.plot_contour(study, params=list(pair), **named)
    return figures


def _bars(shares: dict[str, float]) -> Figure:
    # Optuna's own would estimate the shares again.
    names = list(shares)[::-1]
    bar = {"type": "bar", "orientation": "h", "x": [shares[name] for name in names], "y": names}
    return Figure([bar], {"xaxis": {"title": "share", "tickformat": ".0%"}, "yaxis": {"automargin": True}})
