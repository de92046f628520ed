"""Settings of the evaluate stage, from params.yaml or the command line's flags."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import build, name, names, section
from pipeline.errors import UserError
from pipeline.indexes import KINDS
from pipeline.settings import at_least, between, not_empty, one_of, setting, settings
from pipeline.storage.contract import Place

USUAL_KS = (1, 5, 10)


@settings
class ZeroShotConfig:
    """One more set to classify: images of another store, class prompts of a text store."""

    name: str = setting(check=not_empty, help="How the set is called in the metrics: <name>/acc1.")
    image: tuple[Place, ...] = setting(check=not_empty, help="Image stores, one for each image encoder of the runs.")
    classes: tuple[Place, ...] = setting(
        check=not_empty, help="Stores of class prompts, one for each text encoder of the runs."
    )
    split: str = setting(default="test", check=not_empty, help="Split of the images.")

    def problems(self) -> Iterator[UserError]:
        """Yield what is wrong with the name: it is a part of the names of metrics."""
        if "/" in self.name:
            yield UserError(expected="a name without a slash", found=repr(self.name), where="name")


@settings
class EvaluateConfig:
    """What to evaluate, on what, and how sure to be."""

    runs: tuple[Place, ...] = setting(
        argument=True, check=not_empty, help="Folders of runs, as `pipeline align` writes them, to stand side by side."
    )
    image: tuple[Place, ...] = setting(
        check=not_empty, help="Image store; repeat, in the runs' order, where they have several image encoders."
    )
    text: tuple[Place, ...] = setting(
        check=not_empty, help="Text store; repeat, in the runs' order, where they have several text encoders."
    )
    out: Place = setting(help="Folder of the report and its tables.")
    split: str = setting(default="test", check=not_empty, help="Split of the images to evaluate.")
    classes: tuple[Place, ...] = setting(
        default=(), help="Store of class prompts for zero-shot. [default: those inside the text stores]"
    )
    zero_shot: tuple[ZeroShotConfig, ...] = setting(default=(), flag=None, help="Further sets to classify.")
    ks: tuple[int, ...] = setting(
        default=USUAL_KS,
        check=(not_empty, at_least(1)),
        flag="--k",
        help="Cut-off of recall@k, at most the number of images; repeat for several.",
    )
    bootstrap: int = setting(
        default=1000, check=at_least(100), flag=None, help="Bootstrap samples behind every interval."
    )
    confidence: float = setting(
        default=0.95,
        check=at_least(0.5, below=1),
        flag=None,
        help="Share of the bootstrap samples inside an interval.",
    )
    baselines: tuple[str, ...] = setting(
        default=(),
        flag="--baseline",
        help="Run or method that every other run is tested against; repeat for several. Intervals and p-values are "
        "corrected for their number. [default: the closed forms, and plain info_nce]",
    )
    seed: int = setting(default=0, flag=None, help="Seed of the bootstrap and of the examples shown.")
    index: str = setting(
        default="auto",
        check=one_of(KINDS, "index"),
        flag=None,
        help="Index behind the examples: auto, torch, flat, ivf, hnsw, sq8 or ivfpq. Metrics are always counted "
        "exactly.",
    )
    examples: int = setting(
        default=8, check=at_least(0), flag=None, help="Random examples to show, and as many of the worst failures."
    )
    data: Place | None = setting(
        default=None, help="Data set folder with the pictures. [default: the one the image store was made from]"
    )
    duplicate_cosine: float = setting(
        default=0.97,
        check=between(-1, 1),
        flag=None,
        help="Cosine of centred frozen features from which on a test image counts as a near-duplicate of a training "
        "image.",
    )
    probes: bool = setting(default=True, flag="--probes/--no-probes", help="Train kNN and linear probes on the labels.")
    csls: int = setting(
        default=0, check=at_least(0), help="Count retrieval with CSLS as well, with this many neighbours."
    )
    notes: tuple[str, ...] = setting(
        default=(),
        flag=None,
        help="Sentences that must stand beside the numbers, such as what an encoder was trained on.",
    )
    title: str = setting(default="", flag=None, help="Title of the report. [default: data set and encoders]")

    def problems(self) -> Iterator[UserError]:
        """Yield what is wrong between settings."""
        names = [item.name for item in self.zero_shot]
        if len(set(names)) < len(names):
            yield UserError(expected="sets of different names", found=", ".join(names), where="zero_shot")


def evaluate_config(params: Mapping[str, Any], root: Path = Path(), where: str = "params.yaml") -> EvaluateConfig:
    """Return the settings that params.yaml means: every method's run, side by side in one report.

    Args:
        params: The whole of params.yaml.
        root: The checkout; all folders are below its `data/`.
        where: The file that they came from, for errors.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
    """
    settings = section(params, "evaluate", where)
    dataset = name(section(params, "align", where), "dataset", where=f"{where}: align")
    image, text = (name(params, side, where=where) for side in ("image_encoder", "text_encoder"))
    features = root / "data" / "1_features"
    sets = [each for each in names(settings, "zero_shot", where=f"{where}: evaluate") if each != dataset]
    settings.pop("zero_shot", None)
    values = {
        "runs": [root / "data" / "2_projectors" / method for method in names(params, "methods", where=where)],
        "image": [features / dataset / image],
        "text": [features / dataset / text],
        "out": root / "data" / "3_report",
        "zero_shot": [
            {"name": each, "image": [features / each / image], "classes": [features / each / text / "classes"]}
            for each in sets
        ],
        **settings,
    }
    return build(EvaluateConfig, values, where=f"{where}: evaluate")
