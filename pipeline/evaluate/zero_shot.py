"""Zero-shot classification: images of a split, a store of class prompts, and who is nearest.

A class embedding is the normalised mean of its normalised prompt embeddings. The rank of the true class among all
classes gives acc1, acc5 and mean_per_class_recall; ties count against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.evaluate.data import run_features
from pipeline.metrics.calibration import confidences
from pipeline.metrics.classification import classifier, zero_shot_metrics
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.side import Side

Answers: TypeAlias = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Confidence of each query's first answer [Q], and whether it was right [Q]; a tie is not right."""


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
    prompt_store = str(prompts.stores[0].path)
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


def classify(
    run: AlignedRun, data: ZeroShotSet, seed: int, temperatures: Sequence[float]
) -> tuple[NDArray[np.int64], list[Answers], NDArray[np.int64]]:
    """Classify every image with one seed of a run.

    Returns:
        Rank [M] of the true class, (confidence [M], right [M]) of the first answer for each temperature, and counts
        [C, C] of true class against predicted class.
    """
    classes = class_vectors(run, data, seed)
    images = run.encode("image", run_features(run, data.image, data.rows), seed)
    found = zero_shot_metrics(images, classes, data.target, (1,))
    sure = [confidences(images, classes, data.target, temperature) for temperature in temperatures]
    return found.ranks, [(each.top, each.correct) for each in sure], found.confusion


def class_vectors(run: AlignedRun, data: ZeroShotSet, seed: int) -> Tensor:
    """Return one unit vector a class [C, d]."""
    labels = data.prompts.samples.label
    rows = np.array([row for row, label in enumerate(labels) if label], dtype=np.int64)
    known = {label: index for index, label in enumerate(data.classes)}
    owner = np.array([known[labels[row]] for row in rows])
    return classifier(run.encode("text", run_features(run, data.prompts, rows), seed), owner, len(known))
