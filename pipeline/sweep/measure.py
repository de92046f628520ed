"""What a cell is worth: retrieval, zero-shot, calibration and geometry of one pair of projectors, and every rank.

The same functions count here as in `pipeline evaluate`, so that a cell and a report of the same run agree digit for
digit.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, zero_shot_direction
from pipeline.metrics.calibration import TopProbabilities, confidences, reliability
from pipeline.metrics.classification import classifier, zero_shot_metrics
from pipeline.metrics.retrieval import cross_ranks, ranks
from pipeline.metrics.similarity import continuity, modality_gap, trustworthiness
from pipeline.projectors.base import embed_blocks
from pipeline.sweep.bench import AlignedCell, Workbench

Ranks = NDArray[np.int64]
Measured = tuple[dict[str, float], dict[str, Ranks]]
"""Metrics by name, and direction → ranks of all queries."""

CUTS = (1, 5, 10)
NEIGHBOURS = 5
GEOMETRY_ROWS = 500


def measure(bench: Workbench, aligned: AlignedCell) -> Measured:
    """Measure a cell on the sweep's split; nothing where it has none.

    Returns:
        Metrics as fractions (`text_retrieval_recall@1`, `mean_recall`, `<set>/acc1`, ...; what is broken at test time
        after `noise 0.5: ` and the like), and direction → ranks of all queries.

    Raises:
        UserError: Embeddings are not finite.
    """
    features = bench.features(aligned.layers)
    if bench.test is None or features.test is None:
        return {}, {}
    owner = torch.from_numpy(bench.test.pairs.caption_image)
    image, text = (embed(aligned, side, part) for side, part in zip(("image", "text"), features.test, strict=True))
    temperature = aligned.trained.temperature or 1.0
    metrics, found = _retrieval(image, text, owner, temperature)
    metrics["modality_gap"] = modality_gap(image, text)
    metrics |= _geometry(features.test, (image, text), first_captions(owner, len(image)))
    for data, (pictures, prompts, classes) in zip(bench.class_sets, features.classes, strict=True):
        embedded = embed(aligned, "image", pictures)
        weights = classifier(embed(aligned, "text", prompts), classes, len(data.classes))
        result = zero_shot_metrics(embedded, weights, data.target)
        sure = confidences(embedded, weights, data.target, temperature)
        own = result.metrics | _calibration(sure.top, sure.correct)
        metrics |= {f"{data.name}/{name}": value for name, value in own.items()}
        found[zero_shot_direction(data.name)] = result.ranks
    for name, broken in _corrupted(bench, aligned, features.test[0], (image, text), owner):
        metrics |= {f"{name}: {metric}": value for metric, value in recalls(broken).items()}
        found |= {f"{name}: {direction}": held for direction, held in broken.items()}
    return metrics, found


def embed(aligned: AlignedCell, modality: str, features_ND: Tensor) -> Tensor:
    """Return unit-length embeddings [N, d] on the CPU.

    Raises:
        UserError: One is not finite.
    """
    projector = (aligned.trained.image if modality == "image" else aligned.trained.text).eval()
    return embed_blocks(projector, features_ND, where=f"{aligned.cell.name}, {modality} side")


def recalls(by_direction: Mapping[str, Ranks]) -> dict[str, float]:
    """Return recall@1/5/10 and the median rank of each direction of retrieval, and the mean of all recalls."""
    found: dict[str, float] = {}
    for direction, held in by_direction.items():
        found |= {f"{direction}_recall@{k}": float((held <= k).mean()) for k in CUTS}
    mean = sum(found.values()) / len(found)
    medians = {f"{direction}_median_rank": float(np.median(held)) for direction, held in by_direction.items()}
    return {**found, **medians, "mean_recall": mean}


def first_captions(owner_P: Tensor, images: int) -> Tensor:
    """Return the position [M] of the first caption of each of M images."""
    first = torch.full((images,), len(owner_P), dtype=torch.int64)
    return first.scatter_reduce_(0, owner_P, torch.arange(len(owner_P)), "amin")


def add_noise(features_ND: Tensor, sigma: float, seed: int) -> Tensor:
    """Return features with Gaussian noise of σ·‖x‖/√D a coordinate: at σ = 1 it is as long as the row itself."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(features_ND.shape, generator=generator)
    scale: Tensor = torch.linalg.vector_norm(features_ND, dim=1, keepdim=True) * (sigma / features_ND.shape[1] ** 0.5)
    return features_ND + noise * scale


def _retrieval(image: Tensor, text: Tensor, owner: Tensor, temperature: float) -> Measured:
    top = TopProbabilities(len(image), len(text), temperature)
    image_ranks, text_ranks = cross_ranks(image, text, owner, watch=top.watch)
    found = {TEXT_RETRIEVAL: image_ranks, IMAGE_RETRIEVAL: text_ranks}
    metrics = recalls(found)
    for direction, sure in ((TEXT_RETRIEVAL, top.by_row), (IMAGE_RETRIEVAL, top.by_column)):
        calibration = _calibration(sure, found[direction] == 1)
        metrics |= {f"{direction}_{name}": value for name, value in calibration.items()}
    return metrics, found


def _calibration(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, float]:
    return {
        "ece": reliability(sure, right).error,
        "mean_max_probability": float(sure.mean()),
        "over_confidence": float(sure.mean() - right.mean()),
    }


def _geometry(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], first: Tensor) -> dict[str, float]:
    """Return trustworthiness and continuity of both sides, on the first images and the first caption of each."""
    chosen = torch.arange(len(first))[:GEOMETRY_ROWS], first[:GEOMETRY_ROWS]
    k = min(NEIGHBOURS, (len(chosen[0]) - 1) // 2)
    found: dict[str, float] = {}
    if k >= 1:
        for modality, rows, frozen, aligned in zip(("image", "text"), chosen, before, after, strict=True):
            found[f"{modality}_trustworthiness"] = trustworthiness(frozen[rows], aligned[rows], k)
            found[f"{modality}_continuity"] = continuity(frozen[rows], aligned[rows], k)
    return found


def _corrupted(
    bench: Workbench, aligned: AlignedCell, frozen: Tensor, clean: tuple[Tensor, Tensor], owner: Tensor
) -> Iterator[tuple[str, dict[str, Ranks]]]:
    """Yield what was broken, and the ranks then; changed captions come with the same queries unchanged (`, clean`)."""
    image, text = clean
    for sigma in bench.config.corruption.image_noise:
        noisy = embed(aligned, "image", add_noise(frozen, sigma, seed=aligned.cell.seed))
        by_image, by_text = cross_ranks(noisy, text, owner)
        yield f"noise {sigma:g}", {TEXT_RETRIEVAL: by_image, IMAGE_RETRIEVAL: by_text}
    for name, (changed, captions) in bench.features(aligned.layers).changed.items():
        targets = owner[torch.from_numpy(captions)]
        yield name, {IMAGE_RETRIEVAL: ranks(embed(aligned, "text", changed), image, targets)}
        yield f"{name}, clean", {IMAGE_RETRIEVAL: ranks(text[torch.from_numpy(captions)], image, targets)}
