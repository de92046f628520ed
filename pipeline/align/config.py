"""Settings of the align stage: which stores, which method, which pairs. Filled from params.yaml or from flags.

config = AlignConfig(image=(Path("…/vit"),), text=(Path("…/minilm"),), out=Path("…/run"), method="structure")
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.align.loggers.table import LOGGERS
from pipeline.align.options import require
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.config import build, name, section
from pipeline.errors import UnknownNameError

LAYER_METRICS = ("mutual_knn", "cka")


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """One run: one method, one or several seeds."""

    image: tuple[Path, ...]
    """Image stores; the layers of several are concatenated."""
    text: tuple[Path, ...]
    """Text stores; the layers of several are concatenated."""
    out: Path
    """Folder of the run."""
    method: str = "fewpairs"
    """A name of `pipeline.align.methods.METHODS`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Changes to the method's recipe, nested: {"training": {"epochs": 40}}."""
    layers: str = "auto"
    """`auto` (what the method recommends, mostly `pair`), `pair` (the best pair), `stack` (the best few of each side),
    or `I,J`: image layers and text layers, each a layer expression, `last`, `grow` (added while validation recall
    rises) or `spread` (the first, a middle and the last one); `last`, `grow` and `spread` alone mean both sides."""
    layer_metric: str = "mutual_knn"
    """What `pair` and `stack` compare layers by: mutual_knn, or cka (unbiased linear CKA)."""
    stack: int = 3
    """How many layers of each side `stack` concatenates."""
    pairs: int | None = None
    """Number of training images, drawn by seed; nothing said means all."""
    captions_per_image: int | None = None
    """Captions of each training image, drawn by seed; nothing said means all. Validation always has all."""
    seeds: tuple[int, ...] = (1, 42, 55)
    """Each seed draws its own start, batches and, with `pairs` or `captions_per_image`, its own training data."""
    train_split: str = "train"
    """Split that is trained on."""
    validation_split: str = "val"
    """Split that stops training and picks the best weights; a tenth of the training images where there is none."""
    device: str = "auto"
    """auto, cpu, cuda or another device of torch."""
    log_to: str | None = None
    """A name of `pipeline.align.loggers.table.LOGGERS` that gets the history of every seed; nothing said means none."""

    def __post_init__(self) -> None:
        require(bool(self.image) and bool(self.text), "image and text", "with a store each", "none")
        require(bool(self.seeds), "seeds", "with one seed at least", "none")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", "that differ", self.seeds)
        require(all(0 <= seed < 2**63 for seed in self.seeds), "seeds", "between 0 and 2^63", self.seeds)
        require(self.pairs is None or self.pairs >= 2, "pairs", "of 2 or more", self.pairs)
        count = self.captions_per_image
        require(count is None or count >= 1, "captions_per_image", "of 1 or more", count)
        if self.layer_metric not in LAYER_METRICS:
            raise UnknownNameError("layer metric", self.layer_metric, LAYER_METRICS, "layer_metric")
        if self.log_to is not None and self.log_to not in LOGGERS:
            raise UnknownNameError("logger", self.log_to, LOGGERS, "log_to")
        require(self.stack >= 1, "stack", "of 1 or more", self.stack)
        require(self.train_split != self.validation_split, "validation_split", "other than train_split", "the same")
        self.recipe()

    def recipe(self) -> Recipe:
        """Return the method's recipe with the settings laid over it.

        Raises:
            UserError: A setting is unknown or impossible.
            UnknownNameError: No such method.
        """
        return make_recipe(self.method, self.settings, where="align settings")

    @property
    def layer_expression(self) -> str:
        """What `layers` means: the method's own recommendation where it is `auto`."""
        stated = self.layers.strip()
        return self.recipe().layers.strip() if stated == "auto" else stated

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data, the whole recipe included."""
        plain = {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        return {**plain, "recipe": _plain(dataclasses.asdict(self.recipe()))}


def align_config(
    params: Mapping[str, Any], method: str, root: Path = Path(), where: str = "params.yaml"
) -> AlignConfig:
    """Return the settings that params.yaml means for one method.

    Args:
        params: The whole of params.yaml; its section `align` holds fields of `AlignConfig`, and `dataset`.
        method: The method.
        root: The checkout; all folders are below its `data/`.
        where: The file that they came from, for errors.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
    """
    values = section(params, "align", where)
    features = root / "data" / "1_features" / name(values, "dataset", where=f"{where}: align")
    values.pop("dataset")
    paths = {
        "image": [features / name(params, "image_encoder", where=where)],
        "text": [features / name(params, "text_encoder", where=where)],
        "out": root / "data" / "2_projectors" / method,
    }
    return build(AlignConfig, {**paths, **values, "method": method}, where=f"{where}: align")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
