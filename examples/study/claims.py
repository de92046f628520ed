"""Claims against numbers: each one becomes a row with its effect, an interval and a verdict that a rule gives."""

from dataclasses import dataclass
from typing import Any

from examples.study.config import BEST_CLOSED, Claim, StudyConfig
from examples.study.statistics import Effect, Group, best_closed, closed_rows, difference

VERDICTS = {1: "holds here", 0: "no difference to be seen here", -1: "the opposite holds here"}


@dataclass(frozen=True)
class Tested:
    """A claim and what became of it."""

    claim: Claim
    effect: Effect | None
    """Better minus other (other minus better where lower is better); None where cells are missing."""

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return "not measured" if self.effect is None else VERDICTS[self.effect.clear]


def judge_claims(config: StudyConfig, groups: list[Group]) -> list[Tested]:
    """Test every claim on the cells that are finished."""
    return [Tested(claim, _effect(config, groups, claim)) for claim in config.claims]


def _effect(config: StudyConfig, groups: list[Group], claim: Claim) -> Effect | None:
    pairs = [
        (group, other)
        for group in groups
        if _fits(claim, group) and (other := _other(config, groups, claim, group)) is not None
    ]
    if not pairs:
        return None
    effect = difference(pairs, claim.measure)
    if not claim.lower:
        return effect
    return Effect(-effect.value, -effect.high, -effect.low, effect.cells, effect.cells - effect.ahead)


def _fits(claim: Claim, group: Group) -> bool:
    kind = group.kind
    wanted: dict[str, tuple[Any, ...]] = {
        "pairs": claim.pairs,
        "captions": claim.captions,
        "layers": claim.layers[:1],
        "swapped": claim.swapped,
    }
    fits = all(not values or getattr(kind, name) in values for name, values in wanted.items())
    return fits and kind.grid == claim.grid and kind.row == claim.better


def _other(config: StudyConfig, groups: list[Group], claim: Claim, group: Group) -> Group | None:
    kind = group.kind._replace(layers=claim.layers[1]) if len(claim.layers) > 1 else group.kind
    if claim.than == BEST_CLOSED:
        return best_closed(groups, kind, closed_rows(config))
    return next((other for other in groups if other.kind == kind._replace(row=claim.than)), None)
