"""What a cell is worth: retrieval, zero-shot, calibration and geometry of one pair of projectors, and every rank.

The same functions count here as in `pipeline evaluate`, so that a cell and a report of the same run agree digit for
digit.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.evaluate.calibrate import BINS
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, zero_shot_direction
from pipeline.metrics.calibration import TopProbabilities, confidences, reliability
from pipeline.metrics.classification import classifier, zero_shot_metrics
from pipeline.metrics.geometry import continuity, modality_gap, trustworthiness
from pipeline.metrics.retrieval import cross_ranks, ranks
from pipeline.projectors.base import Projector
from pipeline.study.bench import Made, Workbench
from pipeline.study.corrupt import add_noise

Ranks = NDArray[np.int64]
CUTS = (1, 5, 10)
NEIGHBOURS = 5
GEOMETRY_ROWS = 500
BLOCK = 8192


def measure(bench: Workbench, made: Made) -> tuple[dict[str, float], dict[str, Ranks]]:
    """Measure a cell on the sweep's split.

    Returns:
        Metrics as fractions (`text_retrieval_recall@1`, `mean_recall`, `<set>/acc1`, ...; what is broken at test time
        after `noise 0.5: ` and the like), and direction → ranks of all queries.

    Raises:
        PipelineError: Embeddings are not finite.
    """
    if bench.test is None:
        return {}, {}
    features = bench.features(made.layers)
    image, text = (_Side(made, side).embed(part) for side, part in zip(("image", "text"), features.test, strict=True))
    owner = torch.from_numpy(bench.test.pairs.caption_image)
    temperature = made.trained.temperature or 1.0
    metrics, found = _retrieval(image, text, owner, temperature)
    metrics["modality_gap"] = modality_gap(image, text)
    metrics |= _geometry(features.test, (image, text), owner)
    for data, (pictures, prompts, classes) in zip(bench.class_sets, features.classes, strict=True):
        sides = _Side(made, "image").embed(pictures), _Side(made, "text").embed(prompts)
        weights = classifier(sides[1], classes, len(data.classes))
        result = zero_shot_metrics(sides[0], weights, data.target)
        sure = confidences(sides[0], weights, data.target, temperature)
        metrics |= {f"{data.name}/{name}": value for name, value in result.metrics.items()}
        metrics |= {f"{data.name}/{name}": value for name, value in _calibration(sure.top, sure.correct).items()}
        found[zero_shot_direction(data.name)] = result.ranks
    for name, broken in _corrupted(bench, made, image, text, owner):
        metrics |= {f"{name}: {metric}": value for metric, value in recalls(broken).items()}
        found |= {f"{name}: {direction}": held for direction, held in broken.items()}
    return metrics, found


def embeddings(bench: Workbench, made: Made) -> tuple[Tensor, Tensor]:
    """Return the measured split's image [M, d] and caption [P, d] embeddings."""
    image, text = bench.features(made.layers).test
    return _Side(made, "image").embed(image), _Side(made, "text").embed(text)


def recalls(by_direction: Mapping[str, Ranks]) -> dict[str, float]:
    """Return recall@1/5/10 and the median rank of each direction of retrieval, and the mean of all recalls."""
    found: dict[str, float] = {}
    for direction, held in by_direction.items():
        found |= {f"{direction}_recall@{k}": float((held <= k).mean()) for k in CUTS}
    mean = sum(found.values()) / len(found)
    medians = {f"{direction}_median_rank": float(np.median(held)) for direction, held in by_direction.items()}
    return {**found, **medians, "mean_recall": mean}


class _Side:
    """One side's projector of a cell."""

    def __init__(self, made: Made, modality: str) -> None:
        self._projector: Projector = made.trained.image if modality == "image" else made.trained.text
        self._what = f"{made.cell.name}, {modality} side"

    def embed(self, features: Tensor) -> Tensor:
        """Return unit-length embeddings [N, d] on the CPU, block by block as `AlignedRun.encode` does."""
        projector = self._projector.eval()
        device = next(iter(projector.state_dict().values()), torch.empty(0)).device
        with torch.no_grad():
            parts = [projector(features[at : at + BLOCK].to(device)).cpu() for at in range(0, len(features), BLOCK)]
        embedded = torch.cat(parts)
        if not torch.isfinite(embedded).all():
            raise PipelineError(expected="finite embeddings", found="NaN or infinity", where=self._what)
        return embedded


def _retrieval(
    image: Tensor, text: Tensor, owner: Tensor, temperature: float
) -> tuple[dict[str, float], dict[str, Ranks]]:
    top = TopProbabilities(len(image), len(text), temperature)
    image_ranks, text_ranks = cross_ranks(image, text, owner, watch=top.watch)
    found = {TEXT_RETRIEVAL: image_ranks, IMAGE_RETRIEVAL: text_ranks}
    metrics = recalls(found)
    for direction, sure in ((TEXT_RETRIEVAL, top.by_row), (IMAGE_RETRIEVAL, top.by_column)):
        calibration = _calibration(sure, found[direction] == 1)
        metrics |= {f"{direction}_{name}": value for name, value in calibration.items()}
    return metrics, found


def _calibration(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, float]:
    error = reliability(sure, right, bins=BINS).error
    return {
        "ece": error,
        "mean_max_probability": float(sure.mean()),
        "over_confidence": float(sure.mean() - right.mean()),
    }


def _geometry(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], owner: Tensor) -> dict[str, float]:
    """Return trustworthiness and continuity of both sides, on the first images and the first caption of each."""
    first = torch.full((int(owner.max()) + 1,), len(owner), dtype=torch.int64)
    first.scatter_reduce_(0, owner, torch.arange(len(owner)), "amin")
    chosen = {"image": torch.arange(len(before[0]))[:GEOMETRY_ROWS], "text": first[:GEOMETRY_ROWS]}
    found: dict[str, float] = {}
    for modality, frozen, aligned in zip(("image", "text"), before, after, strict=True):
        rows = chosen[modality]
        k = min(NEIGHBOURS, (len(rows) - 1) // 2)
        if k >= 1:
            found[f"{modality}_trustworthiness"] = trustworthiness(frozen[rows], aligned[rows], k)
            found[f"{modality}_continuity"] = continuity(frozen[rows], aligned[rows], k)
    return found


def _corrupted(
    bench: Workbench, made: Made, image: Tensor, text: Tensor, owner: Tensor
) -> Iterator[tuple[str, dict[str, Ranks]]]:
    """Yield what was broken, and the ranks then; changed captions come with the same queries unchanged (`, clean`)."""
    features = bench.features(made.layers)
    for sigma in bench.config.corruption.image_noise:
        noisy = _Side(made, "image").embed(add_noise(features.test[0], sigma, seed=made.cell.seed))
        by_image, by_text = cross_ranks(noisy, text, owner)
        yield f"noise {sigma:g}", {TEXT_RETRIEVAL: by_image, IMAGE_RETRIEVAL: by_text}
    for name, (changed, captions) in features.changed.items():
        targets = owner[torch.from_numpy(captions)]
        yield name, {IMAGE_RETRIEVAL: ranks(_Side(made, "text").embed(changed), image, targets)}
        yield f"{name}, clean", {IMAGE_RETRIEVAL: ranks(text[torch.from_numpy(captions)], image, targets)}
