"""Means that cost next to nothing: sums on the device, without waiting for it."""

from typing import Any

from torch import Tensor


class Means:
    """Running means of scalars over images."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, count: int, values: dict[str, Tensor]) -> None:
        """Take in the means over `count` images."""
        for name, value in values.items():
            weighted = value.detach().float() * count
            self.sums[name] = self.sums[name].add_(weighted) if name in self.sums else weighted
        self.count += count

    def merge(self, other: "Means") -> None:
        """Take in all that `other` holds."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += other.count

    def state_dict(self) -> dict[str, Any]:
        """The sums and the count, as plain types."""
        return {"count": self.count, "sums": {name: value.cpu() for name, value in self.sums.items()}}

    @classmethod
    def of(cls, states: list[dict[str, Any]], device: Any) -> "Means":
        """What all `states` hold together."""
        means = cls()
        for state in states:
            part = cls()
            part.count = state["count"]
            part.sums = {name: value.to(device) for name, value in state["sums"].items()}
            means.merge(part)
        return means
