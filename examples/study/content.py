"""What the page's sections are made of: the study, its groups of cells, times, maps, and small helpers to cut them.

Used by `page`, `comparisons` and `diagnosis`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from examples.study.config import StudyConfig
from examples.study.figures import Cloud
from examples.study.statistics import Group, select


@dataclass(frozen=True)
class Content:
    """What the page is made of."""

    config: StudyConfig
    groups: list[Group]
    """Groups of finished cells."""
    record: dict[str, Any]
    """study.json: times and versions."""
    maps: dict[str, Cloud]
    """Row → map."""
    command: str
    """The command that makes all of it."""
    figure: Callable[[str, str], str]
    """Saves an SVG by name and returns its Markdown."""

    def grid(self, name: str) -> list[Group]:
        """Return the groups of a grid."""
        return select(self.groups, grid=name)

    @property
    def front(self) -> list[str]:
        """Rows that are drawn in colour: one closed form, the baseline, the three methods, all three, the proposed."""
        wanted = ["cca", self.config.baseline, "modest_align", "variance_aware", "structure", "combined"]
        return list(dict.fromkeys([*wanted, self.config.proposed]))


Section = Callable[[Content], Iterator[str]]
"""Yields the pieces of a section."""


def largest(groups: Sequence[Group]) -> list[int | None]:
    """Return the numbers of pairs that are shown in full: 1,000 where it is there, and the largest."""
    every = list(dict.fromkeys(group.kind.pairs for group in groups))
    return list(dict.fromkeys([n for n in every if n == 1000] + every[-1:]))


def accuracies(groups: Sequence[Group]) -> dict[str, str]:
    """Return data set → metric of the zero-shot accuracies that the cells hold."""
    first = next(iter(groups[0].results.values()))["test"]
    return {name.removesuffix("/acc1"): name for name in first if name.endswith("/acc1")}


def captions_words(captions: int | None) -> str:
    """Return a number of captions in words."""
    if captions is None:
        return "All captions of an image"
    return f"{captions} caption{'s' if captions > 1 else ''} an image"


def split_by(groups: Sequence[Group], *fields: str) -> Iterator[tuple[tuple[Any, ...], list[Group]]]:
    """Yield the values of fields of `Kind`, and the groups that have them."""
    for values in dict.fromkeys(tuple(getattr(group.kind, name) for name in fields) for group in groups):
        yield values, select(groups, **dict(zip(fields, values, strict=True)))


def is_broken(content: Content, name: str) -> bool:
    """Whether something is broken in a grid: pairs, words or images."""
    grid = content.config.grids[name]
    return bool(grid.image_noise or grid.changes or len(grid.swapped) > 1)
