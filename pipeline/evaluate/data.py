"""What is evaluated: the test pairs, the sets to classify, and what a run takes from the stores, as one tensor."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.metrics.classification import classifier
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.samples import Pairs, join
from pipeline.store.views import Rows, Side


@dataclass(frozen=True)
class TestPairs:
    """The split that is evaluated.

    Args:
        image: The image stores.
        text: The text stores.
        pairs: M unique images, P captions, and which image each caption belongs to.
        split: Name of the split.
    """

    __test__ = False  # not a test class

    image: Side
    text: Side
    pairs: Pairs
    split: str

    @property
    def image_ids(self) -> list[str]:
        """Ids of the M images."""
        return [self.image.samples.image_id[row] for row in self.pairs.image_rows]

    @property
    def caption_ids(self) -> list[str]:
        """Ids of the P captions."""
        return [self.text.samples.sample_id[row] for row in self.pairs.caption_rows]

    @property
    def captions_of(self) -> Rows:
        """[M] number of captions of each image."""
        return np.bincount(self.pairs.caption_image, minlength=len(self.pairs.image_rows)).astype(np.int64)


@dataclass(frozen=True)
class ZeroShotSet:
    """Images with labels of one split, and prompts for every class.

    Args:
        name: Name of the set; empty for the main data set.
        image: Its image stores.
        prompts: Its stores of class prompts.
        classes: C class names.
        rows: Positions [M] of the labelled images of the split.
        target: Class [M] of each of them.
        unlabelled: Images of the split without a label, which are left out.
        split: The split.
    """

    name: str
    image: Side
    prompts: Side
    classes: list[str]
    rows: NDArray[np.int64]
    target: NDArray[np.int64]
    unlabelled: int
    split: str

    @property
    def prompt_rows(self) -> tuple[Rows, Rows]:
        """Positions [Q] of the prompts of all classes, and the class [Q] of each."""
        labels = self.prompts.samples.label
        known = {label: index for index, label in enumerate(self.classes)}
        rows = [row for row, label in enumerate(labels) if label]
        return np.array(rows, dtype=np.int64), np.array([known[labels[row]] for row in rows], dtype=np.int64)

    def of_split(self, split: str) -> "ZeroShotSet | None":
        """Return the labelled images of another split, of the same classes; None where there are none."""
        labels = self.image.samples.label
        known = {label: index for index, label in enumerate(self.classes)}
        rows = [row for row, value in enumerate(self.image.samples.split) if value == split and labels[row] in known]
        if split == self.split or not rows:
            return None
        target = np.array([known[labels[row]] for row in rows], dtype=np.int64)
        return replace(self, rows=np.array(rows, dtype=np.int64), target=target, unlabelled=0, split=split)

    @property
    def image_ids(self) -> list[str]:
        """Ids of the M images."""
        return [self.image.samples.sample_id[row] for row in self.rows]

    @property
    def labels(self) -> list[str]:
        """Class names of the M images."""
        return [self.classes[target] for target in self.target]


def pairs_of_split(image: Side, text: Side, split: str) -> TestPairs:
    """Join images and captions of a split by image id.

    Raises:
        UnknownNameError: No image is in that split.
        UserError: None of its images has a caption.
    """
    splits = [name for name in dict.fromkeys(image.samples.split) if name]
    if split not in splits:
        raise UnknownNameError("split", split, splits, str(image.stores[0].root))
    pairs = join(image.samples, text.samples, split)
    if not len(pairs.image_rows):
        raise UserError(
            expected=f"captions of the images in split {split}",
            found="none that share an image id",
            where=str(text.stores[0].root),
            remedy="give the text store of the same data set",
        )
    return TestPairs(image, text, pairs, split)


def zero_shot_set(name: str, image: Side, prompts: Side, split: str) -> ZeroShotSet:
    """Join the images of a split with the classes that the prompts speak of.

    Raises:
        UnknownNameError: No image is in that split.
        UserError: There are fewer than two classes, no labelled image, or a label without prompts.
    """
    where = image.where
    splits = [known for known in dict.fromkeys(image.samples.split) if known]
    if split not in splits:
        raise UnknownNameError("split", split, splits, where)
    classes = [label for label in dict.fromkeys(prompts.samples.label) if label]
    prompt_store = str(prompts.stores[0].root)
    if len(classes) < 2:
        raise UserError(expected="prompts of two classes at least", found=f"{len(classes)} classes", where=prompt_store)
    inside = [row for row, value in enumerate(image.samples.split) if value == split]
    rows = [row for row in inside if image.samples.label[row]]
    if not rows:
        raise UserError(expected=f"images with labels in split {split}", found="none", where=where)
    known = {label: index for index, label in enumerate(classes)}
    missing = [label for label in dict.fromkeys(image.samples.label[row] for row in rows) if label not in known]
    if missing:
        found = f"none for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
        raise UserError(expected="prompts for every label of the images", found=found, where=prompt_store)
    target = np.array([known[image.samples.label[row]] for row in rows], dtype=np.int64)
    left_out = len(inside) - len(rows)
    return ZeroShotSet(name, image, prompts, classes, np.array(rows, dtype=np.int64), target, left_out, split)


def run_features(run: AlignedRun, side: Side, at: Rows, *, constant_allowed: bool = False) -> Tensor:
    """Return a run's layers of the samples at these positions, concatenated [len(at), D], float32.

    Raises:
        UserError: A value is not finite, or all rows of a layer are the same (unless that is allowed).
    """
    return side.read(run.refs(side.modality), at, constant_allowed=constant_allowed)


def class_vectors(run: AlignedRun, data: ZeroShotSet, seed: int) -> Tensor:
    """Return one unit vector a class [C, d]."""
    rows, owner = data.prompt_rows
    prompts = run.encode("text", run_features(run, data.prompts, rows), seed, task="classification")
    return classifier(prompts, owner, len(data.classes))
