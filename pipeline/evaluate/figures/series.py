"""A named line, and the part that it plays in the story: colours follow the part, not the order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluate.figures.canvas import CLOSED, LEAD, OTHER, RIVAL

Part = Literal["lead", "rival", "closed", "other"]
COLOURS: dict[Part, str] = {"lead": LEAD, "rival": RIVAL, "closed": CLOSED, "other": OTHER}
ORDER: dict[Part, int] = {"other": 1, "closed": 2, "rival": 3, "lead": 4}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method's line, x against y (both of the same length)."""

    name: str
    part: Part
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One method's value with its interval."""

    name: str
    part: Part
    value: float
    low: float
    high: float
