"""A study as a YAML file says it: encoders, data sets, methods, grids of cells, claims to test.

for each in sweeps_of(load_study(Path("examples/study/study.yaml")), data=Path("data"), out=out): ...
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import build, load_params
from pipeline.errors import UnknownNameError, UserError
from pipeline.evaluate.config import ZeroShotConfig
from pipeline.sweep.cells import Result
from pipeline.sweep.config import Corruption, Method, SweepConfig, methods_of

SEPARATOR = "+"
"""Between the names of encoders that are stacked."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells that answer one question."""

    about: str
    """The question, a sentence."""
    encoders: tuple[tuple[str, ...], ...]
    """Pairs of an image and a text encoder by their short names; `a+b` stacks two."""
    pairs: tuple[int | None, ...]
    """Numbers of training images."""
    captions: tuple[int | None, ...] = (None,)
    """Captions of a training image."""
    layers: tuple[str, ...] = ("auto",)
    """auto, last, stack or `I,J`."""
    methods: tuple[str, ...] = ()
    """Rows of the study's methods; nothing said means all."""
    seeds: tuple[int, ...] = ()
    """Seeds; nothing said means the study's."""
    swapped: tuple[float, ...] = (0.0,)
    """Shares of the training images that get another's captions."""
    image_noise: tuple[float, ...] = ()
    """Gaussian noise on the test images' features, σ·‖x‖/√D a coordinate."""
    drop: tuple[float, ...] = ()
    """Shares of the words of the test captions that are left out."""
    shuffle: tuple[float, ...] = ()
    """Shares of their words that change places."""
    zero_shot: bool = True
    """Whether the zero-shot sets are measured."""

    def __post_init__(self) -> None:
        if not self.encoders or any(len(pair) != 2 for pair in self.encoders):
            raise UserError(expected="encoders as pairs [image, text]", found=str(list(map(list, self.encoders))))
        wrong = [share for share in (*self.drop, *self.shuffle) if not 0 < share < 1]
        if wrong:
            raise UserError(expected="shares between 0 and 1 in drop and shuffle", found=str(wrong[0]))

    @property
    def changes(self) -> list[tuple[str, float]]:
        """Changes of the test captions: kind and share."""
        return [("drop", share) for share in self.drop] + [("shuffle", share) for share in self.shuffle]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something published, or ours, that the numbers may bear out: one row is better than another on a measure."""

    claim: str
    """The claim, a sentence."""
    source: str
    """Who says so: an arXiv number, or `ours`."""
    better: str
    """Row that should be better."""
    than: str
    """Row that it is compared with; `best closed form` is the one that is best on validation."""
    measure: str
    """A name of `examples.study.statistics.MEASURES`, `<set>/acc1`, or a metric of the cells."""
    grid: str
    """Grid whose cells count."""
    lower: bool = False
    """Whether smaller is better, as for a calibration error."""
    layers: tuple[str, ...] = ()
    """[of the better, of the other]; nothing said means that all layers of the grid count, each with its own."""
    captions: tuple[int | None, ...] = ()
    """Only these numbers of captions; nothing said means all of the grid."""
    pairs: tuple[int | None, ...] = ()
    """Only these numbers of images; nothing said means all of the grid."""
    swapped: tuple[float, ...] = (0.0,)
    """Only these shares of swapped captions."""
    published: str = ""
    """How large the published effect is, in words."""


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What is drawn as a map of images and captions in the plane."""

    grid: str
    """Grid whose first encoders are used."""
    methods: tuple[str, ...]
    """Rows."""
    pairs: int | None
    """Training images."""
    captions: int | None = None
    """Captions of each."""
    points: int = 300
    """Images that are drawn, with one caption each."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The whole study."""

    title: str
    """Title of the page."""
    encoders: dict[str, Any]
    """Short name → specification, or fields of `ExtractConfig`."""
    data: dict[str, str]
    """Data set → what follows `pipeline data`, where it is not there yet."""
    dataset: str
    """Data set whose pairs are aligned."""
    methods: dict[str, Method]
    """Row → method."""
    grids: dict[str, Grid]
    """Name → grid."""
    seeds: tuple[int, ...] = (1, 42, 55, 100, 430)
    """Seeds."""
    split: str = "test"
    """Split that is measured."""
    zero_shot: tuple[str, ...] = ()
    """Data sets to classify."""
    baseline: str = "info_nce"
    """Row that differences are taken against, beside the best closed form."""
    proposed: str = "fewpairs"
    """Row that is drawn in front."""
    main: str = "main"
    """Grid of the main tables."""
    claims: tuple[Claim, ...] = ()
    """Claims to test."""
    maps: Maps | None = None
    """Maps to draw."""
    notes: tuple[str, ...] = ()
    """Sentences that stand beside the numbers."""

    def __post_init__(self) -> None:
        _known("grid", [self.main, *(claim.grid for claim in self.claims)], self.grids)
        _known("method", [self.baseline, self.proposed], self.methods)
        for name, grid in self.grids.items():
            _known("method", grid.methods, self.methods, f"grids.{name}")
            encoders = [part for pair in grid.encoders for side in pair for part in side.split(SEPARATOR)]
            _known("encoder", encoders, self.encoders, f"grids.{name}")
        for claim in self.claims:
            _known("method", [claim.better], self.methods, f"claim {claim.claim!r}")
            _known("method", [claim.than], [*self.methods, BEST_CLOSED], f"claim {claim.claim!r}")
        if self.maps is not None:
            _known("grid", [self.maps.grid], self.grids, "maps")
            _known("method", self.maps.methods, self.methods, "maps")


BEST_CLOSED = "best closed form"


def _known(kind: str, used: Iterable[str], known: Iterable[str], where: str = "") -> None:
    for name in used:
        if name not in known:
            raise UnknownNameError(kind, name, known, where)


def _with_all(values: Any) -> Any:
    """Return YAML in which `all` under `pairs` and `captions`, at any depth, is None as the settings want."""
    if isinstance(values, Mapping):
        return {
            key: _counts(value) if key in ("pairs", "captions") else _with_all(value) for key, value in values.items()
        }
    return [_with_all(value) for value in values] if isinstance(values, list) else values


def _counts(value: Any) -> Any:
    if isinstance(value, list):
        return [None if each == "all" else each for each in value]
    return None if value == "all" else value


def load_study(path: Path) -> StudyConfig:
    """Read a study's YAML.

    Raises:
        UserError: It is missing or no YAML, or lists every setting that is wrong.
    """
    values: dict[str, Any] = _with_all(load_params(path))
    methods = values.get("methods")
    if not isinstance(methods, Mapping) and not (
        isinstance(methods, list) and all(isinstance(value, str) for value in methods)
    ):
        raise UserError(expected="methods, a mapping of rows", found=type(methods).__name__, where=str(path))
    return build(StudyConfig, {**values, "methods": methods_of(methods, str(path))}, where=str(path))


@dataclass(frozen=True)
class GridSweep:
    """One sweep of a study, a grid with one pair of encoders, and what it gave."""

    grid: str
    """Name of the grid."""
    image: str
    """Image encoder, or several with a plus between."""
    text: str
    """Text encoder."""
    sweep: SweepConfig
    """The sweep."""
    results: list[Result] = field(default_factory=list)
    """What of it is finished."""

    @property
    def encoders(self) -> str:
        """Both encoders in one name."""
        return f"{self.image} × {self.text}"


def sweeps_of(config: StudyConfig, data: Path, out: Path) -> list[GridSweep]:
    """Return the study's sweeps. Grids of the same encoders share a folder, so that no cell is computed twice.

    Args:
        config: The study.
        data: The folder that holds `1_features`.
        out: Folder of the results.
    """
    return [
        GridSweep(name, pair[0], pair[1], _sweep(config, name, pair, data / "1_features", out))
        for name, grid in config.grids.items()
        for pair in grid.encoders
    ]


def _sweep(config: StudyConfig, name: str, pair: tuple[str, ...], features: Path, out: Path) -> SweepConfig:
    grid = config.grids[name]
    image, text = (side.split(SEPARATOR) for side in pair)
    folder = "_".join([*image, "x", *text])
    broken = grid.image_noise or grid.changes
    measured = folder if not broken and grid.zero_shot else f"{folder}~{name}"
    texts = {
        change_name(kind, share): tuple(
            out / "changed" / "1_features" / change_slug(kind, share) / encoder for encoder in text
        )
        for kind, share in grid.changes
    }
    return SweepConfig(
        image=tuple(features / config.dataset / encoder for encoder in image),
        text=tuple(features / config.dataset / encoder for encoder in text),
        out=out / "cells" / measured,
        methods={row: config.methods[row] for row in grid.methods or config.methods},
        pairs=grid.pairs,
        seeds=grid.seeds or config.seeds,
        captions=grid.captions,
        layers=grid.layers,
        swapped=grid.swapped,
        split=config.split,
        classes=tuple(
            ZeroShotConfig(
                name=each,
                image=tuple(features / each / encoder for encoder in image),
                classes=tuple(features / each / encoder / "classes" for encoder in text),
                split=config.split,
            )
            for each in (config.zero_shot if grid.zero_shot else ())
        ),
        corruption=Corruption(image_noise=grid.image_noise, texts=texts),
    )


def change_name(kind: str, share: float) -> str:
    """Return how a change of captions is called in metrics: `drop 20%`."""
    return f"{kind} {100 * share:g}%"


def change_slug(kind: str, share: float) -> str:
    """Return the folder's name of a change of captions."""
    return f"{kind}{100 * share:g}"


def encoders_of(config: StudyConfig) -> dict[str, str]:
    """Return every encoder that the grids use, and what it takes: image or text."""
    return {
        encoder: modality
        for grid in config.grids.values()
        for pair in grid.encoders
        for modality, side in zip(("image", "text"), pair, strict=True)
        for encoder in side.split(SEPARATOR)
    }


def only_grids(config: StudyConfig, names: Iterable[str]) -> StudyConfig:
    """Return the study with some of its grids alone, to run it by pieces.

    Raises:
        UnknownNameError: No such grid.
    """
    chosen = list(names)
    _known("grid", chosen, config.grids, "--grid")
    kept = {name: grid for name, grid in config.grids.items() if name in chosen}
    claims = tuple(claim for claim in config.claims if claim.grid in kept)
    maps = config.maps if config.maps is not None and config.maps.grid in kept else None
    main = config.main if config.main in kept else next(iter(kept))
    return dataclasses.replace(config, grids=kept, claims=claims, maps=maps, main=main)
