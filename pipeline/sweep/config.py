"""Settings of a sweep: stores, and lists of everything that is varied. Filled from params.yaml, a study file or flags.

config = SweepConfig(image=(…,), text=(…,), out=…, methods={"cca": Method(method="cca")}, pairs=(250, 1000))
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.align.config import AlignConfig
from pipeline.align.recipe import merge
from pipeline.config import build, name, names, section
from pipeline.errors import UserError
from pipeline.evaluate.config import ZeroShotConfig
from pipeline.settings import between, distinct, more_than, not_empty, setting, settings, shared
from pipeline.storage.contract import Place


@settings
class Method:
    """A row of the tables: a preset with changes."""

    method: str = setting(flag=None, help="A name of `pipeline.align.recipe.METHODS`.")
    settings: dict[str, Any] = setting(default_factory=dict, flag=None, help="Changes to its recipe, nested.")
    layers: str | None = setting(default=None, flag=None, help="Layers for this row alone. [default: the sweep's]")


@settings
class Corruption:
    """What is broken at test time, beside the clean measurement."""

    image_noise: tuple[float, ...] = setting(
        default=(), check=more_than(0), flag=None, help="Gaussian noise on the image features, σ·‖x‖/√D a coordinate."
    )
    texts: dict[str, tuple[Path, ...]] = setting(
        default_factory=dict,
        flag=None,
        help="Name → stores of changed captions (their ids say which), one for each text encoder.",
    )


def counts(values: Sequence[Any], option: str) -> list[int | None]:
    """Return numbers of pairs or captions as a sweep takes them: None for `all`.

    Raises:
        UserError: A value is neither a number nor `all`.
    """
    wrong = [value for value in values if value not in ("all", None) and not str(value).isdecimal()]
    if wrong:
        raise UserError(expected="a number or all", found=repr(wrong[0]), where=option)
    return [None if value in ("all", None) else int(value) for value in values]


def methods_of(values: Sequence[str] | Mapping[str, Any], where: str = "--method") -> dict[str, Method]:
    """Return rows of a list of names, or of a mapping from a row's name to a method's name or `Method` fields.

    Raises:
        UserError: It is neither, or a field is unknown.
    """
    if not isinstance(values, (list, tuple, Mapping)) or not all(isinstance(value, str) for value in values):
        raise UserError(expected="methods as a list of names or a mapping", found=repr(values), where=where)
    about = values if isinstance(values, Mapping) else dict.fromkeys(values)
    return {str(row): _method(str(row), each, f"{where}: methods.{row}") for row, each in about.items()}


def _method(row: str, value: Any, where: str) -> Method:
    if isinstance(value, Method):
        return value
    changes = value if isinstance(value, Mapping) else {} if value is None else {"method": value}
    return build(Method, {"method": row, **changes}, where=where)


def class_sets(values: Sequence[str]) -> list[dict[str, Any]]:
    """Return zero-shot sets that are written as NAME=IMAGE_STORE:PROMPT_STORE, of several encoders with commas.

    Raises:
        UserError: One is not.
    """
    found = []
    for value in values:
        set_name, _, stores = value.partition("=")
        image, _, prompts = stores.partition(":")
        if not (set_name and image and prompts):
            raise UserError(expected="NAME=IMAGE_STORE:PROMPT_STORE", found=repr(value), where="--classes")
        found.append({"name": set_name, "image": image.split(","), "classes": prompts.split(",")})
    return found


@settings
class SweepConfig:
    """Every combination of the lists is a cell, and every cell a run of `align` that is measured on `split`.

    A setting that changes bytes gives other numbers, or other cells. Stores count by their content, not by where they
    lie. The first seed draws the images that layers are chosen by.
    """

    image: tuple[Place, ...] = shared(AlignConfig, "image")
    text: tuple[Place, ...] = shared(AlignConfig, "text")
    out: Path = setting(changes_bytes=False, help="Folder of the results.")
    methods: dict[str, Method] = setting(
        check=not_empty, changes_bytes=True, flag="--method", parse=methods_of, help="Method; repeat for several."
    )
    pairs: tuple[int | None, ...] = setting(
        default=(None,),
        check=(not_empty, distinct),
        changes_bytes=True,
        parse=lambda values: counts(values, "--pairs"),
        help="Number of training images, drawn by seed, or all; repeat for several. [default: all]",
    )
    captions: tuple[int | None, ...] = setting(
        default=(None,),
        check=(not_empty, distinct),
        changes_bytes=True,
        flag="--captions-per-image",
        parse=lambda values: counts(values, "--captions-per-image"),
        help="Captions of a training image, drawn by seed, or all; repeat for several. [default: all]",
    )
    layers: tuple[str, ...] = setting(
        default=("auto",),
        check=(not_empty, distinct),
        changes_bytes=True,
        help="auto (what suits the method), pair, stack, last, grow, spread, or I,J; repeat for several.",
    )
    seeds: tuple[int, ...] = shared(AlignConfig, "seeds")
    swapped: tuple[float, ...] = setting(
        default=(0.0,),
        check=(not_empty, distinct, between(0, 1)),
        changes_bytes=True,
        flag=None,
        help="Shares of the training images that get another's captions.",
    )
    layer_metric: str = shared(AlignConfig, "layer_metric", flag=None)
    stack: int = shared(AlignConfig, "stack")
    settings: dict[str, Any] = shared(AlignConfig, "settings")
    split: str | None = setting(
        default=None,
        changes_bytes=True,
        help="Split to measure on, such as test. [default: validation alone]",
    )
    classes: tuple[ZeroShotConfig, ...] = setting(
        default=(),
        changes_bytes=True,
        parse=class_sets,
        help="Zero-shot set as NAME=IMAGE_STORE:PROMPT_STORE (of several encoders with commas); repeat for several.",
    )
    corruption: Corruption = setting(
        default_factory=Corruption, changes_bytes=True, flag=None, help="What is broken at test time."
    )
    train_split: str = shared(AlignConfig, "train_split")
    validation_split: str = shared(AlignConfig, "validation_split")
    device: str = setting(default="cpu", changes_bytes=False, help="cpu, auto or cuda; cells are small.")
    keep: bool = setting(
        default=False, changes_bytes=False, flag="--keep", help="Keep each cell's projectors below <out>/runs."
    )

    def problems(self) -> Iterator[UserError]:
        """Yield what is wrong between settings."""
        if len({each.name for each in self.classes}) < len(self.classes):
            yield UserError(expected="zero-shot sets of different names", found="one name twice", where="sweep")
        first = next(iter(self.methods))
        asked = {(row, self.pairs[0], self.captions[0], layers) for row in self.methods for layers in self.layers}
        asked |= {(first, pairs, captions, self.layers[0]) for pairs in self.pairs for captions in self.captions}
        try:
            for each in sorted(asked, key=str):
                self.align(*each)
        except UserError as error:
            yield error

    def align(self, row: str, pairs: int | None, captions: int | None, layers: str) -> AlignConfig:
        """Return the `align` settings of a row's cells.

        Raises:
            UserError: A setting is unknown or impossible.
            UnknownNameError: No such method.
        """
        method = self.methods[row]
        same = ("image", "text", "layer_metric", "stack", "seeds", "train_split", "validation_split", "device")
        return AlignConfig(
            **{name: getattr(self, name) for name in same},
            out=self.out / "runs" / row,
            method=method.method,
            settings=merge(self.settings, method.settings),
            layers=method.layers or layers,
            pairs=pairs,
            captions_per_image=captions,
        )


def sweep_config(params: Mapping[str, Any], root: Path = Path(), **flags: Any) -> SweepConfig:
    """Return the settings that params.yaml means by its section `sweep` (and `align.dataset`, the two encoders).

    Args:
        params: The whole of params.yaml; `sweep` holds fields of `SweepConfig`, and `zero_shot` with data sets' names.
        root: The checkout; all folders are below its `data/`.
        flags: Fields that win over the section.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
    """
    where = "params.yaml: sweep"
    values = {**section(params, "sweep"), **flags}
    sets = names(values, "zero_shot", where=where)
    values.pop("zero_shot", None)
    image, text = name(params, "image_encoder"), name(params, "text_encoder")
    features = root / "data" / "1_features"
    pairs_of = features / name(section(params, "align"), "dataset", where="params.yaml: align")
    lists = {key: counts(values[key], key) for key in ("pairs", "captions") if isinstance(values.get(key), list)}
    own = {
        "image": [pairs_of / image],
        "text": [pairs_of / text],
        "out": root / "data" / "4_study" / "sweep",
        "classes": [
            {"name": each, "image": [features / each / image], "classes": [features / each / text / "classes"]}
            for each in sets
        ],
    }
    methods = values.get("methods") or names(params, "methods")
    return build(SweepConfig, {**own, **values, **lists, "methods": methods_of(methods, where)}, where=where)
