"""Settings of a sweep: stores, and lists of everything that is varied. Filled from params.yaml, a study file or flags.

config = SweepConfig(image=(…,), text=(…,), out=…, methods={"cca": Method(method="cca")}, pairs=(250, 1000))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.align.config import AlignConfig
from pipeline.align.methods import merge
from pipeline.config import build, name, names, section
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the tables: a preset with changes."""

    method: str
    """A name of `pipeline.align.methods.METHODS`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Changes to its recipe, nested."""
    layers: str | None = None
    """Layers for this row alone; nothing said means those of the sweep."""


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """Images with labels and prompts for their classes, for zero-shot classification."""

    name: str
    """How it is called: `<name>/acc1`."""
    image: tuple[Path, ...]
    """Image stores, one for each image encoder of the sweep."""
    classes: tuple[Path, ...]
    """Stores of class prompts, one for each text encoder."""
    split: str = "test"
    """Split of the images."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What is broken at test time, beside the clean measurement."""

    image_noise: tuple[float, ...] = ()
    """Gaussian noise on the image features, σ·‖x‖/√D a coordinate."""
    texts: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Name → stores of changed captions (their ids say which), one for each text encoder."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Every combination of the lists is a cell, and every cell a run of `align` that is measured on `split`."""

    image: tuple[Path, ...]
    """Image stores; the layers of several are concatenated."""
    text: tuple[Path, ...]
    """Text stores."""
    out: Path
    """Folder of the results."""
    methods: dict[str, Method]
    """Row → method."""
    pairs: tuple[int | None, ...] = (None,)
    """Numbers of training images, drawn by seed; none means all."""
    seeds: tuple[int, ...] = (1, 42, 55)
    """Seeds; the first draws the images that layers are chosen by."""
    captions: tuple[int | None, ...] = (None,)
    """Captions of a training image, drawn by seed; none means all."""
    layers: tuple[str, ...] = ("auto",)
    """auto, last, stack, or `I,J` (see `AlignConfig`)."""
    swapped: tuple[float, ...] = (0.0,)
    """Shares of the training images that get another's captions."""
    layer_metric: str = "mutual_knn"
    """What auto and stack compare layers by."""
    stack: int = 3
    """Layers of each side that `stack` concatenates."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Changes to the recipe of every method."""
    split: str | None = None
    """Split that cells are measured on; nothing said means that only validation is."""
    classes: tuple[ClassSet, ...] = ()
    """Zero-shot sets; measured where there is a split."""
    corruption: Corruption = field(default_factory=Corruption)
    """What is broken at test time."""
    train_split: str = "train"
    """Split that is trained on."""
    validation_split: str = "val"
    """Split that chooses the best weights."""
    device: str = "cpu"
    """auto, cpu, cuda or another device of torch; cells are small."""
    keep: bool = False
    """Keep each cell's projectors as a run below `<out>/runs`."""

    def __post_init__(self) -> None:
        lists = ("methods", "pairs", "seeds", "captions", "layers", "swapped")
        empty = [name for name in lists if not getattr(self, name)]
        if empty:
            raise UserError(expected=f"something in {', '.join(empty)}", found="nothing", where="sweep")
        twice = [name for name in lists[1:] if len(set(getattr(self, name))) < len(getattr(self, name))]
        if twice:
            raise UserError(expected=f"each value once in {', '.join(twice)}", found="one twice", where="sweep")
        wrong = [share for share in self.swapped if not 0 <= share <= 1]
        if wrong:
            raise UserError(expected="swapped shares of 0 to 1", found=str(wrong[0]), where="sweep")
        noise = [sigma for sigma in self.corruption.image_noise if not 0 < sigma < float("inf")]
        if noise:
            raise UserError(expected="image_noise above 0", found=str(noise[0]), where="sweep")
        if len({each.name for each in self.classes}) < len(self.classes):
            raise UserError(expected="zero-shot sets of different names", found="one name twice", where="sweep")
        for row in self.methods:
            for layers in self.layers:
                self.align(row, self.pairs[0], self.captions[0], layers)

    def align(self, row: str, pairs: int | None, captions: int | None, layers: str) -> AlignConfig:
        """Return the `align` settings of a row's cells.

        Raises:
            UserError: A setting is unknown or impossible.
            UnknownNameError: No such method.
        """
        method = self.methods[row]
        return AlignConfig(
            image=self.image,
            text=self.text,
            out=self.out / "runs" / row,
            method=method.method,
            settings=merge(self.settings, method.settings),
            layers=method.layers or layers,
            layer_metric=self.layer_metric,
            stack=self.stack,
            pairs=pairs,
            captions_per_image=captions,
            seeds=self.seeds,
            train_split=self.train_split,
            validation_split=self.validation_split,
            device=self.device,
        )


def methods_of(values: Sequence[str] | Mapping[str, Any], where: str) -> dict[str, Method]:
    """Return rows of a list of names, or of a mapping from a row's name to a method's name or `Method` fields.

    Raises:
        UserError: It is neither, or a field is unknown.
    """
    if isinstance(values, Mapping):
        return {
            str(row): build(Method, _fields(str(row), value), where=f"{where}: methods.{row}")
            for row, value in values.items()
        }
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise UserError(expected="methods as a list of names or a mapping", found=repr(values), where=where)
    return {value: Method(method=value) for value in values}


def _fields(row: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {"method": row}
    return {"method": row, **value} if isinstance(value, Mapping) else {"method": value}


def with_all(values: Any) -> Any:
    """Return settings in which `all` under `pairs` and `captions`, at any depth, is None as the configurations want."""
    if isinstance(values, Mapping):
        return {
            key: _counts(value) if key in ("pairs", "captions") else with_all(value) for key, value in values.items()
        }
    return [with_all(value) for value in values] if isinstance(values, list) else values


def _counts(value: Any) -> Any:
    if isinstance(value, list):
        return [None if each == "all" else each for each in value]
    return None if value == "all" else value


def sweep_config(params: Mapping[str, Any], root: Path = Path(), **flags: Any) -> SweepConfig:
    """Return the settings that params.yaml means by its section `sweep` (and `align.dataset`, the two encoders).

    Args:
        params: The whole of params.yaml; `sweep` holds fields of `SweepConfig`, and `zero_shot` with data sets' names.
        root: The checkout; all folders are below its `data/`.
        flags: Fields that win over the section; None means nothing was said.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
    """
    where = "params.yaml: sweep"
    values = {**section(params, "sweep"), **{key: value for key, value in flags.items() if value is not None}}
    dataset = name(section(params, "align"), "dataset", where="params.yaml: align")
    image, text = name(params, "image_encoder"), name(params, "text_encoder")
    features = root / "data" / "1_features"
    sets = names(values, "zero_shot", where=where)
    values.pop("zero_shot", None)
    return build(
        SweepConfig,
        {
            "image": [features / dataset / image],
            "text": [features / dataset / text],
            "out": root / "data" / "4_study" / "sweep",
            "classes": [
                {"name": each, "image": [features / each / image], "classes": [features / each / text / "classes"]}
                for each in sets
            ],
            **with_all(values),
            "methods": methods_of(values.get("methods") or names(params, "methods"), where),
        },
        where=where,
    )
