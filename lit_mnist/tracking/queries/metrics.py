"""Properties of a metric by its name: whether higher is better, and whether it is a share from 0 to 1.

All commands, tables and figures that rank or format values use these functions.
"""

import math
import re
from collections.abc import Mapping

HIGHER_IS_BETTER = {"acc", "accuracy"}
LOWER_IS_BETTER = {"loss", "mse", "error"}


def higher_is_better(metric: str, goal: str = "") -> bool | None:
    """Return which direction of `metric` is better: True for higher, False for lower, None if unknown.

    Args:
        metric: The metric's name, such as `best/val/acc` or `train/loss_epoch`.
        goal: The objective of a study, such as `minimize val/loss` (the tag `sweep.goal`), which takes precedence
            for its metric.

    """
    # The study's objective comes first, since its metric's name may not show the direction.
    direction, _, goal_metric = goal.partition(" ")
    if direction and metric.removeprefix("best/") == goal_metric.removeprefix("best/"):
        return direction == "maximize"
    # By whole words: `val/loss_epoch` contains "loss", but `glossiness` does not.
    words = _words(metric)
    if words & HIGHER_IS_BETTER:
        return True
    return False if words & LOWER_IS_BETTER else None


def sort_value(metric: str, value: float, goal: str = "") -> float:
    """Return a number that is smaller for a better `value`. NaN comes last; an unknown metric sorts ascending."""
    if math.isnan(value):
        return math.inf
    return -value if higher_is_better(metric, goal) else value


def is_share(metric: str) -> bool:
    """True if the metric is a share from 0 to 1, which is shown in percent."""
    return bool(_words(metric) & HIGHER_IS_BETTER)


def without_repeats(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics without those that equal the loss beside them, such as an autoencoder's `val/mse`."""
    losses = {name.rpartition("/")[0]: value for name, value in metrics.items() if "/loss" in name}
    return {k: v for k, v in metrics.items() if "/loss" in k or losses.get(k.rpartition("/")[0]) != v}


def _words(metric: str) -> set[str]:
    return set(re.split(r"[/_]", metric))
