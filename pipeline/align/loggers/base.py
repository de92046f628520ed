"""What a logger gets, a finished seed, and what it is: a package that it needs and a function that writes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LoggedSeed:
    """A finished seed as it lies in its run's folder."""

    run: str
    """Name of the run."""
    seed: int
    """The seed."""
    digest: str
    """Digest of all that it depends on."""
    settings: Mapping[str, Any]
    """The run's settings, plain data, nested."""
    history: tuple[Mapping[str, Any], ...]
    """Rows of history.jsonl, see `pipeline.align.history`."""
    record: Mapping[str, Any]
    """Its entry in run.json."""

    def points(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield (step, values): `train/loss`, `train/lr`, …, and `val/<metric>` at validated steps.

        A closed form takes no steps; its rows, one a ridge strength and the chosen one, are counted instead.
        """
        for place, row in enumerate(self.history):
            values = {_name(name): float(value) for name, value in row.items() if name != "step" and _number(value)}
            yield row["step"] or place, values

    def final(self) -> dict[str, float]:
        """Return what the seed came to: `final/<metric>` on validation, and `final/` with the names of `LAST`."""
        found = {**self.record["validation"], **{name: self.record.get(name) for name in LAST}}
        return {f"final/{name}": float(value) for name, value in found.items() if _number(value)}

    def flat_settings(self) -> dict[str, Any]:
        """Return the settings by dotted names: {"recipe.training.epochs": 60, …}."""
        return dict(_flat(self.settings, ""))


@dataclass(frozen=True)
class Logger:
    """One kind of log."""

    package: str
    """The package that has to be there."""
    write: Callable[[LoggedSeed, Path], None]
    """Writes a seed into an empty folder."""


LAST = ("temperature", "learning_rate", "steps", "seconds")
"""What of a seed's record is logged beside its validation metrics."""


def _name(name: str) -> str:
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
