"""Settings of the align stage: which stores, which method, which pairs. Filled from params.yaml or from flags.

config = AlignConfig(image=("…/vit",), text=("…/minilm",), out="…/run", method="structure")
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.align.loggers import LOGGERS
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.config import assignments, build, name, section
from pipeline.errors import UserError
from pipeline.settings import at_least, between, distinct, not_empty, one_of, setting, settings
from pipeline.storage.contract import Place

LAYER_METRICS = ("mutual_knn", "cka")
UNPAIRED = ("none", "own", "rest")


@settings
class AlignConfig:
    """One run: one method, one or several seeds.

    A setting that changes bytes gives other projectors: a seed that was finished with another value is trained again.
    Stores count by their content, not by where they lie.
    """

    image: tuple[Place, ...] = setting(
        check=not_empty, changes_bytes=False, help="Image store; the layers of several are concatenated."
    )
    text: tuple[Place, ...] = setting(
        check=not_empty, changes_bytes=False, help="Text store; the layers of several are concatenated."
    )
    out: Place = setting(changes_bytes=False, help="Folder of the run, data/2_projectors/<name>.")
    method: str = setting(
        default="fewpairs",
        changes_bytes=True,
        flag=None,
        help="fewpairs, cca, info_nce, structure, ...; an unknown name lists all of them.",
    )
    settings: dict[str, Any] = setting(
        default_factory=dict,
        changes_bytes=True,
        flag="--set",
        parse=assignments,
        help="Change the method's recipe, such as training.epochs=40 or dim=128; repeat for several.",
    )
    layers: str = setting(
        default="auto",
        changes_bytes=True,
        help="auto (what suits the method, mostly pair), pair (the best pair), stack (the best few of each side), "
        "or I,J: image layers and text layers, each of them last, grow (added while validation recall rises), spread "
        "(the first, a middle and the last), an index or a name. One of these alone means both sides.",
    )
    layer_metric: str = setting(
        default="mutual_knn",
        check=one_of(LAYER_METRICS, "layer metric"),
        changes_bytes=True,
        help="What pair and stack compare layers by: mutual_knn, or cka (unbiased linear CKA).",
    )
    stack: int = setting(
        default=3,
        check=at_least(1),
        changes_bytes=True,
        flag=None,
        help="How many layers of each side stack concatenates.",
    )
    pairs: int | None = setting(
        default=None,
        check=at_least(2),
        changes_bytes=True,
        help="Number of training images, drawn by seed. [default: all]",
    )
    captions_per_image: int | None = setting(
        default=None,
        check=at_least(1),
        changes_bytes=True,
        flag=None,
        help="Captions of each training image, drawn by seed; validation always has all. [default: all]",
    )
    seeds: tuple[int, ...] = setting(
        default=(1, 42, 55),
        check=(not_empty, distinct, between(0, 2**63 - 1)),
        changes_bytes=True,
        flag="--seed",
        help="Seed of weights, batches and drawn training data; repeat for several trainings.",
    )
    train_split: str = setting(default="train", changes_bytes=True, flag=None, help="Split to train on.")
    validation_split: str = setting(
        default="val",
        changes_bytes=True,
        flag=None,
        help="Split that picks the best weights; a tenth of the training images where it is empty.",
    )
    unpaired_image: tuple[Place, ...] = setting(
        default=(),
        changes_bytes=True,
        help="Store of images without texts that helps a few pairs (default recipe, cca); repeat for several. Join the "
        "stores of several encoders by commas.",
    )
    unpaired_text: tuple[Place, ...] = setting(
        default=(), changes_bytes=True, help="Store of texts without images, the same way."
    )
    unpaired: str = setting(
        default="none",
        check=one_of(UNPAIRED, "unpaired part"),
        changes_bytes=True,
        help="Which unpaired rows of the run's own stores count as well: none, own (images without captions, captions "
        "without images, and all of --unpaired-split), rest (also what --pairs left over, in halves without a pair).",
    )
    unpaired_splits: tuple[str, ...] = setting(
        default=(),
        changes_bytes=True,
        flag="--unpaired-split",
        help="Further split whose unpaired rows may be used, beside the training split and rows of none; repeat for "
        "several. With a test split the run is transductive, and run.json says so.",
    )
    device: str = setting(default="auto", changes_bytes=False, help="auto, cpu or cuda.")
    log_to: str | None = setting(
        default=None,
        check=one_of(LOGGERS, "logger"),
        changes_bytes=False,
        help="Log each seed's history as well: dvclive, tensorboard or wandb (offline).",
    )
    replace: bool = setting(
        default=False, changes_bytes=False, flag="--replace", help="Make this run in place of another one at --out."
    )

    def problems(self) -> Iterator[UserError]:
        """Yield what is wrong between settings, and in the recipe."""
        if self.train_split == self.validation_split:
            expected = "another split than train_split"
            yield UserError(expected=expected, found=self.train_split, where="validation_split")
        if bool(self.unpaired_image) != bool(self.unpaired_text) and self.unpaired == "none":
            expected = "stores of both sides: --unpaired-image and --unpaired-text"
            yield UserError(expected=expected, found="one of them", where="unpaired_image, unpaired_text")
        try:
            self.recipe()
        except UserError as error:
            yield error

    def recipe(self) -> Recipe:
        """Return the method's recipe with the settings laid over it.

        Raises:
            UserError: A setting is unknown or impossible.
            UnknownNameError: No such method.
        """
        return make_recipe(self.method, self.settings, where="align settings")

    @property
    def names_unpaired(self) -> bool:
        """Whether unpaired rows are named."""
        return bool(self.unpaired_image or self.unpaired_text) or self.unpaired != "none"

    @property
    def uses_unpaired(self) -> bool:
        """Whether unpaired rows are named and the method can use them."""
        return self.names_unpaired and self.recipe().takes_unpaired

    @property
    def layer_expression(self) -> str:
        """What `layers` means: the method's own recommendation where it is `auto`."""
        stated = self.layers.strip()
        return self.recipe().layers.strip() if stated == "auto" else stated

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data, the whole recipe included."""
        values = {name: value for name, value in vars(self).items() if name != "replace"}
        values["recipe"] = dataclasses.asdict(self.recipe())
        return dict(json.loads(json.dumps(values, default=str)))


def align_config(
    params: Mapping[str, Any], method: str, root: Path = Path(), where: str = "params.yaml"
) -> AlignConfig:
    """Return the settings that params.yaml means for one method.

    Args:
        params: The whole of params.yaml; its section `align` holds fields of `AlignConfig`, and `dataset`.
        method: The method; its run is made in place of an older one with other settings, so the folder is always what
            params.yaml says.
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
    return build(AlignConfig, {**paths, "replace": True, **values, "method": method}, where=f"{where}: align")
