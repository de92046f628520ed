"""Evaluate one run on the test pairs and on every zero-shot set: all seeds, all queries, one bootstrap."""

import json
import math
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
    calibrate,
    evenly,
    retrieval_temperatures,
    validation_pairs,
    zero_shot_temperatures,
)
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, class_vectors, run_features
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
from pipeline.files import read_json
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.calibration import TopProbabilities, confidences
from pipeline.metrics.classification import zero_shot_metrics
from pipeline.metrics.retrieval import Watch, cross_ranks, mean_average_precision
from pipeline.projectors.csls import nearest_mean, scaled
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.samples import join

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
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
    precision: Floats | None = None
    confusion: Ranks | None = None


def evaluate_run(
    name: str, run: AlignedRun, pairs: TestPairs, sets: Sequence[ZeroShotSet], config: EvaluateConfig
) -> RunResult:
    """Evaluate a run.

    Raises:
        KeyMismatchError: The stores hold features of another key than it was trained on.
        UserError: Its files are damaged, or its features are not finite.
    """
    for side in (pairs.image, pairs.text, *(part for data in sets for part in (data.image, data.prompts))):
        run.check(side.modality, side.keys, side.where, offered=side.offered)
    answered = {
        each.queries.direction: each for each in (*retrieve(run, pairs), *(classify(run, data) for data in sets))
    }
    classes = {zero_shot_direction(data.name): len(data.classes) for data in sets}
    queries = {direction: each.queries for direction, each in answered.items()}
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
        calibration={direction: each.calibration for direction, each in answered.items()},
        precision={name: each.precision for name, each in answered.items() if each.precision is not None},
        csls=csls_ranks(run, pairs, config.csls) if config.csls else {},
        confusion={name: each.confusion for name, each in answered.items() if each.confusion is not None},
        history={entry.seed: read_history(run.folder / entry.folder) for entry in run.trainings},
        layer_pairs=read_layer_pairs(run),
        record=run.record,
    )


def retrieve(run: AlignedRun, data: TestPairs) -> list[Answered]:
    """Return both directions of retrieval, all seeds."""
    image_features = run_features(run, data.image, data.pairs.image_rows)
    text_features = run_features(run, data.text, data.pairs.caption_rows)
    owner = torch.from_numpy(data.pairs.caption_image)
    temperatures = [run.temperature(seed) for seed in run.seeds]
    fitted = retrieval_temperatures(run, validation_pairs(run, data))
    by_image: list[tuple[Ranks, float, list[Answers]]] = []
    by_text: list[tuple[Ranks, float, list[Answers]]] = []
    for seed, (own, _), after in zip(run.seeds, temperatures, fitted, strict=True):
        image, text = run.encode("image", image_features, seed), run.encode("text", text_features, seed)
        divisors = [(own, own), *([(after[TEXT_RETRIEVAL], after[IMAGE_RETRIEVAL])] if after else [])]
        tops = [TopProbabilities(len(image), len(text), each) for each in divisors]
        image_ranks, text_ranks = cross_ranks(image, text, owner, watch=_all(tops))
        precision = _average_precision(image, text, owner, image_ranks)
        by_image.append((image_ranks, precision, [(top.by_row, image_ranks == 1) for top in tops]))
        reciprocal = float((1 / text_ranks).mean())  # one right image: its reciprocal rank is the precision
        by_text.append((text_ranks, reciprocal, [(top.by_column, text_ranks == 1) for top in tops]))
    images = data.image_ids
    owners = [images[position] for position in data.pairs.caption_image]
    answered = []
    for name, ids, image_ids, found in (
        (TEXT_RETRIEVAL, images, images, by_image),
        (IMAGE_RETRIEVAL, data.caption_ids, owners, by_text),
    ):
        ranks, precisions, sure = zip(*found, strict=True)
        labels = [""] * len(ids)
        queries = QueryRanks(
            direction=name, ids=ids, image_ids=image_ids, labels=labels, seeds=run.seeds, ranks=np.stack(ranks)
        )
        stated = calibrate(sure, temperatures, [each[name] for each in fitted if each])
        answered.append(Answered(queries=queries, calibration=stated, precision=np.array(precisions)))
    return answered


def _average_precision(image: Tensor, text: Tensor, owner: Tensor, ranks: Ranks) -> float:
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


def classify(run: AlignedRun, data: ZeroShotSet) -> Answered:
    """Return zero-shot classification of a set, all seeds."""
    temperatures = [run.temperature(seed) for seed in run.seeds]
    fitted = zero_shot_temperatures(run, data)
    features = run_features(run, data.image, data.rows)
    found, sure = [], []
    for index, seed in enumerate(run.seeds):
        classes, images = class_vectors(run, data, seed), run.encode("image", features, seed)
        found.append(zero_shot_metrics(images, classes, data.target, (1,)))
        divisors = (temperatures[index][0], *fitted[index : index + 1])
        stated = [confidences(images, classes, data.target, temperature) for temperature in divisors]
        sure.append([(each.top, each.correct) for each in stated])
    return Answered(
        queries=QueryRanks(
            direction=zero_shot_direction(data.name),
            ids=data.image_ids,
            image_ids=data.image_ids,
            labels=data.labels,
            seeds=run.seeds,
            ranks=np.stack([each.ranks for each in found]),
        ),
        calibration=calibrate(sure, temperatures, fitted),
        confusion=np.sum([each.confusion for each in found], axis=0),
    )


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


def csls_ranks(run: AlignedRun, data: TestPairs, k: int) -> dict[str, Ranks]:
    """Return direction → ranks [S, Q] under CSLS with K neighbours, the bank taken from the training split.

    No test query is in the bank, so every answer could have been given alone, as a search engine must.

    Raises:
        UserError: The run's training split has fewer than K captions or images in these stores, or is evaluated.
    """
    split = str(run.config.get("train_split", "train"))
    known = join(data.image.samples, data.text.samples, split)
    smallest = 0 if split == data.split else min(len(known.image_rows), len(known.caption_rows))
    if smallest < k:
        found = f"{smallest} in split {split} that are no test queries"
        raise UserError(expected=f"a bank of {k} images and captions for CSLS", found=found, where=data.image.where)
    features = {}
    for name, side, asked, bank in (
        ("image", data.image, data.pairs.image_rows, known.image_rows),
        ("text", data.text, data.pairs.caption_rows, known.caption_rows),
    ):
        rows = (asked, bank[evenly(len(bank), BANK)])
        features[name] = [run_features(run, side, each, constant_allowed=True) for each in rows]
    by_seed = []
    for seed in run.seeds:
        image, image_bank = (run.encode("image", part, seed) for part in features["image"])
        text, text_bank = (run.encode("text", part, seed) for part in features["text"])
        near_image, near_text = _nearest_mean(image, text_bank, k), _nearest_mean(text, image_bank, k)
        left, right = scaled(image, text, near_image, near_text)
        by_seed.append(cross_ranks(left, right, torch.from_numpy(data.pairs.caption_image)))
    by_image, by_text = (np.stack(ranks) for ranks in zip(*by_seed, strict=True))
    return {TEXT_RETRIEVAL: by_image, IMAGE_RETRIEVAL: by_text}


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
        UserError: The file is missing, is no JSON object or leaves the run's folder.
    """
    name = run.record.get("layer_scores")
    if not isinstance(name, str) or not name:
        return None
    path = (run.folder / name).resolve()
    if not path.is_relative_to(run.folder.resolve()) or not path.is_file():
        raise UserError(expected=f"the file {name} in the run's folder", found="none", where=str(run.root))
    return read_json(path, "the scores of layer pairs", str(run.root / name))


def is_number(value: Any) -> bool:
    """Say whether a logged value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
