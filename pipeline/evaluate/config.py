"""Settings of the evaluate stage, filled by `pipeline.config.build` from params.yaml or the command line's flags."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UnknownNameError, UserError
from pipeline.indexes.kinds import KINDS

USUAL_KS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """One more set to classify: images of another store, class prompts of a text store."""

    name: str
    """How the set is called in the metrics: `<name>/acc1`."""
    image: tuple[Path, ...]
    """Image stores, one for each image encoder of the runs."""
    classes: tuple[Path, ...]
    """Stores of class prompts, one for each text encoder of the runs."""
    split: str = "test"
    """Split of the images."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening a file."""
        problems = _missing({"name": self.name, "image": self.image, "classes": self.classes, "split": self.split})
        if problems or "/" in self.name:
            found = "; ".join(problems) or f"the name {self.name!r} with a slash"
            raise UserError(expected="a zero-shot set with name, image, classes and split", found=found)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, on what, and how sure to be."""

    runs: tuple[Path, ...]
    """Folders of trained runs, as `pipeline align` wrote them."""
    image: tuple[Path, ...]
    """Image stores, one for each image encoder of the runs, in their order."""
    text: tuple[Path, ...]
    """Text stores, one for each text encoder of the runs, in their order."""
    out: Path
    """Folder that the report and the tables go into."""
    split: str = "test"
    """Split that is evaluated; it comes from the image side."""
    classes: tuple[Path, ...] = ()
    """Stores of class prompts of the main data set; empty: those nested in the text stores, where there are any."""
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    """Further sets to classify."""
    ks: tuple[int, ...] = USUAL_KS
    """Cut-offs of recall@k; others than these may not exceed the gallery."""
    bootstrap: int = 1000
    """Bootstrap samples behind every interval."""
    confidence: float = 0.95
    """Share of the bootstrap samples inside an interval."""
    seed: int = 0
    """Seed of the bootstrap and of the examples that are shown."""
    index: str = "auto"
    """Index behind the examples: auto, torch, flat, ivf, hnsw, sq8 or ivfpq. Metrics are always counted exactly."""
    examples: int = 8
    """Random example queries in the report, and as many of the worst failures."""
    data: Path | None = None
    """Data set folder that holds the pictures; None: where the image store says that it was made from."""
    duplicate_cosine: float = 0.97
    """Cosine of centred frozen features above which a test image counts as a near-duplicate of a training image."""
    probes: bool = True
    """Whether kNN and linear probes are trained on the labels of the sets to classify."""
    csls: int = 0
    """Neighbours K of CSLS, which retrieval is counted with once more; 0: not at all."""
    notes: tuple[str, ...] = ()
    """Sentences that must stand beside the numbers, such as what an encoder was trained on."""
    title: str = ""
    """Title of the report; empty: data set and encoders."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening a file.

        Raises:
            UserError: Lists every setting that is missing or out of range.
            UnknownNameError: The index kind is unknown.
        """
        problems = _missing({"runs": self.runs, "image": self.image, "text": self.text, "split": self.split})
        if not self.ks or any(k < 1 for k in self.ks):
            problems.append(f"ks should be positive, not {list(self.ks)}")
        if self.bootstrap < 100:
            problems.append(f"bootstrap should be at least 100, not {self.bootstrap}")
        if not 0.5 <= self.confidence < 1:
            problems.append(f"confidence should lie in [0.5, 1), not {self.confidence}")
        if self.examples < 0:
            problems.append(f"examples should not be negative, not {self.examples}")
        if self.csls < 0:
            problems.append(f"csls should be a number of neighbours, or 0, not {self.csls}")
        if not -1 <= self.duplicate_cosine <= 1:
            problems.append(f"duplicate_cosine should be a cosine, not {self.duplicate_cosine}")
        names = [item.name for item in self.zero_shot]
        if len(set(names)) < len(names):
            problems.append(f"zero_shot names should differ, not {names}")
        if problems:
            raise UserError(expected="valid evaluate settings", found="; ".join(problems))
        if self.index not in KINDS:
            raise UnknownNameError("index", self.index, KINDS, "index")


def _missing(values: dict[str, object]) -> list[str]:
    return [f"{name} is empty" for name, value in values.items() if not value]
