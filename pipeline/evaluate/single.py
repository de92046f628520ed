"""Evaluate one run on the test pairs and on every zero-shot set: all seeds, all queries, one bootstrap."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluate.calibrate import (
    Answers,
    Calibration,
    calibration,
    evenly,
    retrieval_temperatures,
    validation_pairs,
    zero_shot_temperatures,
)
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, check_side, class_vectors, run_features
from pipeline.evaluate.queries import (
    IMAGE_RETRIEVAL,
    TEXT_RETRIEVAL,
    Measure,
    QueryRanks,
    measures_of,
    sums_by_cluster,
    value_by_seed,
    zero_shot_direction,
)
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.calibration import TopProbabilities, confidences
from pipeline.metrics.classification import zero_shot_metrics
from pipeline.metrics.retrieval import Watch, cross_ranks, mean_average_precision
from pipeline.projectors.csls import nearest_mean, scaled
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.samples import join

Floats = NDArray[np.float64]
BANK = 5000
"""Training images and captions in the bank, at most, evenly over the split."""
BLOCK = 4096
"""Queries whose similarities to the bank are held at once."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, evaluated on everything."""

    name: str
    """How it is called in tables: its method, or its folder where two runs share the method."""
    method: str
    address: str
    """Where the run lies."""
    seeds: tuple[int, ...]
    trained: bool
    """Whether gradient steps were made; otherwise it is a closed form."""
    queries: Mapping[str, QueryRanks]
    """Direction → ranks."""
    values: Mapping[str, Floats]
    """Measure → value for each seed [S]."""
    replicates: Mapping[str, Floats]
    """Measure → bootstrap replicates of the mean over seeds [B]."""
    calibration: Mapping[str, Calibration]
    """Direction → calibration."""
    precision: Mapping[str, Floats]
    """Direction of retrieval → mean average precision for each seed [S]."""
    csls: Mapping[str, NDArray[np.int64]]
    """Direction of retrieval → ranks [S, Q] under CSLS; empty where it was not asked for."""
    confusion: Mapping[str, NDArray[np.int64]]
    """Zero-shot direction → counts [C, C], all seeds together."""
    history: Mapping[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Seed → logged steps."""
    layer_pairs: Mapping[str, Any] | None = None
    """Scores of the layer pairs, where layers were chosen by them."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """run.json."""

    def mean(self, measure: str) -> float:
        """Return a measure's mean over seeds."""
        return float(self.values[measure].mean())

    def deviation(self, measure: str) -> float | None:
        """Return a measure's sample standard deviation over seeds; None for one seed."""
        values = self.values[measure]
        return float(values.std(ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One direction of a run: ranks and calibration, and for zero-shot what was taken for what."""

    queries: QueryRanks
    calibration: Calibration
    precision: NDArray[np.float64] | None = None
    confusion: NDArray[np.int64] | None = None


def evaluate_run(
    name: str, run: AlignedRun, pairs: TestPairs, sets: Sequence[ZeroShotSet], config: EvaluateConfig
) -> RunResult:
    """Evaluate a run.

    Raises:
        KeyMismatchError: The stores hold features of another key than it was trained on.
        UserError: Its files are damaged, or its features are not finite.
    """
    for side in (pairs.image, pairs.text, *(part for data in sets for part in (data.image, data.prompts))):
        check_side(run, side)
    answered = retrieve(run, pairs)
    classes = {zero_shot_direction(data.name): len(data.classes) for data in sets}
    answered += [classify_seeds(run, data) for data in sets]
    queries = {each.queries.direction: each.queries for each in answered}
    measures = [measure for name in queries for measure in measures_of(name, config.ks, classes.get(name, 0))]
    return RunResult(
        name=name,
        method=run.method,
        address=str(run.root),
        seeds=run.seeds,
        trained=any(entry.steps for entry in run.trainings),
        queries=queries,
        values={measure.name: value_by_seed(measure, queries[measure.direction]) for measure in measures},
        replicates=resample(queries, measures, config.bootstrap, config.seed),
        calibration={each.queries.direction: each.calibration for each in answered},
        precision={each.queries.direction: each.precision for each in answered if each.precision is not None},
        csls=csls_ranks(run, pairs, config.csls) if config.csls else {},
        confusion={each.queries.direction: each.confusion for each in answered if each.confusion is not None},
        history={entry.seed: read_history(run.folder / entry.folder) for entry in run.trainings},
        layer_pairs=read_layer_pairs(run),
        record=run.record,
    )


def retrieve(run: AlignedRun, data: TestPairs) -> list[Answered]:
    """Return both directions of retrieval, all seeds."""
    image_features = run_features(run, data.image, data.pairs.image_rows)
    text_features = run_features(run, data.text, data.pairs.caption_rows)
    owner = torch.from_numpy(data.pairs.caption_image)
    ranks: dict[str, list[NDArray[np.int64]]] = {TEXT_RETRIEVAL: [], IMAGE_RETRIEVAL: []}
    precision: dict[str, list[float]] = {TEXT_RETRIEVAL: [], IMAGE_RETRIEVAL: []}
    sure: dict[str, list[tuple[Answers, ...]]] = {TEXT_RETRIEVAL: [], IMAGE_RETRIEVAL: []}
    temperatures = [run.temperature(seed) for seed in run.seeds]
    fitted = retrieval_temperatures(run, validation_pairs(run, data))
    for seed, (own, _), after in zip(run.seeds, temperatures, fitted, strict=True):
        image, text = run.encode("image", image_features, seed), run.encode("text", text_features, seed)
        divisors = [(own, own), *([(after[TEXT_RETRIEVAL], after[IMAGE_RETRIEVAL])] if after else [])]
        tops = [TopProbabilities(len(image), len(text), each) for each in divisors]
        image_ranks, text_ranks = cross_ranks(image, text, owner, watch=_all(tops))
        precision[TEXT_RETRIEVAL].append(_average_precision(image, text, owner, image_ranks))
        precision[IMAGE_RETRIEVAL].append(float((1 / text_ranks).mean()))  # one right image: its reciprocal rank
        ranks[TEXT_RETRIEVAL].append(image_ranks)
        ranks[IMAGE_RETRIEVAL].append(text_ranks)
        sure[TEXT_RETRIEVAL].append(tuple((top.by_row, image_ranks == 1) for top in tops))
        sure[IMAGE_RETRIEVAL].append(tuple((top.by_column, text_ranks == 1) for top in tops))
    image_ids = data.image_ids
    ids = {
        TEXT_RETRIEVAL: (image_ids, image_ids),
        IMAGE_RETRIEVAL: (data.caption_ids, [image_ids[position] for position in data.pairs.caption_image]),
    }
    return [
        Answered(
            queries=_ranks(run, name, *ids[name], ranks[name]),
            calibration=_calibration(sure[name], temperatures, [each[name] for each in fitted if each]),
            precision=np.array(precision[name]),
        )
        for name in ranks
    ]


def _average_precision(image: Tensor, text: Tensor, owner: Tensor, ranks: NDArray[np.int64]) -> float:
    """Return the mean average precision of images asking for captions."""
    if len(owner) == len(image):
        return float((1 / ranks).mean())
    offsets = torch.cat([owner.new_zeros(1), torch.bincount(owner, minlength=len(image)).cumsum(0)])
    return mean_average_precision(image, text, owner.argsort(stable=True), offsets)


def _all(tops: Sequence[TopProbabilities]) -> Watch:
    """Show a tile to all of them."""

    def watch(scores: Tensor, rows: slice, columns: slice) -> None:
        for top in tops:
            top.watch(scores, rows, columns)

    return watch


def _calibration(
    sure: Sequence[Sequence[Answers]], temperatures: Sequence[tuple[float, str]], fitted: Sequence[float]
) -> Calibration:
    """Return the calibration of each seed's answers; the second answers are those after scaling."""
    scaled = [each[1] for each in sure] if fitted else []
    return calibration([each[0] for each in sure], temperatures, scaled, fitted)


def classify_seeds(run: AlignedRun, data: ZeroShotSet) -> Answered:
    """Return zero-shot classification of a set, all seeds."""
    temperatures = [run.temperature(seed) for seed in run.seeds]
    fitted = [each for each in zero_shot_temperatures(run, data) if each is not None]
    parts = [
        classify(run, data, seed, [own, *fitted[index : index + 1]])
        for index, (seed, (own, _)) in enumerate(zip(run.seeds, temperatures, strict=True))
    ]
    direction = zero_shot_direction(data.name)
    return Answered(
        queries=_ranks(run, direction, data.image_ids, data.image_ids, [part[0] for part in parts], data.labels),
        calibration=_calibration([part[1] for part in parts], temperatures, fitted),
        confusion=np.sum([part[2] for part in parts], axis=0),
    )


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


def resample(
    queries: Mapping[str, QueryRanks], measures: Sequence[Measure], samples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return measure → bootstrap replicates [B]. Both directions of retrieval share their draws of images."""
    result: dict[str, NDArray[np.float64]] = {}
    for direction, table in queries.items():
        names, clusters = np.unique(np.asarray(table.image_ids), return_inverse=True)
        chosen = [measure for measure in measures if measure.direction == direction]
        sums = [sums_by_cluster(measure, table, clusters, len(names)) for measure in chosen]
        drawn = Bootstrap(images=len(names), samples=samples, seed=seed).replicates(sums)
        result |= {measure.name: drawn[row] for row, measure in enumerate(chosen)}
    return result


def csls_ranks(run: AlignedRun, data: TestPairs, k: int) -> dict[str, NDArray[np.int64]]:
    """Return direction → ranks [S, Q] under CSLS with K neighbours.

    Raises:
        UserError: The run's training split has fewer than K captions or images in these stores, or is evaluated.
    """
    split = str(run.config.get("train_split", "train"))
    known = join(data.image.samples, data.text.samples, split)
    smallest = 0 if split == data.split else min(len(known.image_rows), len(known.caption_rows))
    if smallest < k:
        found = f"{smallest} in split {split} that are no test queries"
        raise UserError(expected=f"a bank of {k} images and captions for CSLS", found=found, where=data.image.where)
    bank = {"image": known.image_rows, "text": known.caption_rows}
    asked = {"image": data.pairs.image_rows, "text": data.pairs.caption_rows}
    sides = {"image": data.image, "text": data.text}
    features = {name: run_features(run, side, asked[name], constant_allowed=True) for name, side in sides.items()}
    taken = {name: rows[evenly(len(rows), BANK)] for name, rows in bank.items()}
    banked = {name: run_features(run, side, taken[name], constant_allowed=True) for name, side in sides.items()}
    found_by_seed = []
    for seed in run.seeds:
        image, text = (run.encode(name, features[name], seed) for name in ("image", "text"))
        near_image = _nearest_mean(image, run.encode("text", banked["text"], seed), k)
        near_text = _nearest_mean(text, run.encode("image", banked["image"], seed), k)
        left, right = scaled(image, text, near_image, near_text)
        found_by_seed.append(cross_ranks(left, right, torch.from_numpy(data.pairs.caption_image)))
    return {
        name: np.stack([ranks[side] for ranks in found_by_seed])
        for side, name in enumerate((TEXT_RETRIEVAL, IMAGE_RETRIEVAL))
    }


def _nearest_mean(items: Tensor, bank: Tensor, k: int) -> Tensor:
    return torch.cat([nearest_mean(block, bank, k) for block in torch.split(items, BLOCK)])


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a seed; none where nothing was logged.

    Raises:
        UserError: A line is no JSON object.
    """
    path = folder / "history.jsonl"
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(expected="a JSON object a line", found=str(error), where=str(path)) from error
    return [line for line in lines if isinstance(line, dict)]


def read_layer_pairs(run: AlignedRun) -> dict[str, Any] | None:
    """Return the scores of all layer pairs; None where layers were not chosen by them.

    Raises:
        UserError: The file is not JSON or leaves the run's folder.
    """
    name = run.record.get("layer_scores")
    if not isinstance(name, str) or not name:
        return None
    path = (run.folder / name).resolve()
    if not path.is_relative_to(run.folder.resolve()) or not path.is_file():
        raise UserError(expected=f"the file {name} in the run's folder", found="none", where=str(run.root))
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            expected="JSON with the scores of layer pairs", found=str(error), where=str(run.root / name)
        ) from error
    return value if isinstance(value, dict) else None


def _ranks(
    run: AlignedRun,
    direction: str,
    ids: list[str],
    image_ids: list[str],
    by_seed: list[NDArray[np.int64]],
    labels: list[str] | None = None,
) -> QueryRanks:
    return QueryRanks(
        direction=direction,
        ids=ids,
        image_ids=image_ids,
        labels=labels or [""] * len(ids),
        seeds=run.seeds,
        ranks=np.stack(by_seed),
    )
