"""Evaluate one run on the test pairs and on every zero-shot set: all seeds, all queries, one bootstrap.

Confidence of first answers is the softmax of cosine over temperature, held against whether the answer was right. It is
told twice. First with the run's own temperature: learned or set in training, or, for a closed form, fitted on
validation pairs when it was made (runs of older versions may have none; then a stated default divides their scores).
Then scaled: with the temperature at which the right answers of the validation rows are most likely, in that direction
(arXiv 1706.04599), so that all runs are treated alike. No test row is ever looked at for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, class_vectors, run_features
from pipeline.evaluate.results import (
    IMAGE_RETRIEVAL,
    TEXT_RETRIEVAL,
    Answered,
    Calibration,
    Floats,
    QueryRanks,
    Ranks,
    RunResult,
    measures_of,
    resample,
    value_by_seed,
    zero_shot_direction,
)
from pipeline.files import read_lines, read_signed
from pipeline.metrics.calibration import TopProbabilities, confidences, fit_temperature, reliability
from pipeline.metrics.classification import zero_shot_metrics
from pipeline.metrics.retrieval import cross_ranks, mean_average_precision
from pipeline.projectors.csls import nearest_mean, scaled
from pipeline.projectors.run_record import AlignedRun, fill
from pipeline.store.samples import Pairs, join

ROWS = 500
"""Validation images that a temperature is fitted on, at most, evenly over the split."""
BOUNDS = (0.005, 2.0)
"""Of a fitted temperature: a handful of rows, all right or all wrong, would ask for 0 or infinity."""
_fit = partial(fit_temperature, low=BOUNDS[0], high=BOUNDS[1])
BANK = 5000
"""Training images and captions in the bank of CSLS, at most, evenly over the split."""
BLOCK = 4096
"""Queries whose similarities to the bank are held at once."""
Answers: TypeAlias = tuple[Floats, NDArray[np.bool_]]
"""Confidence of each query's first answer [Q], and whether it was right [Q]; a tie is not right."""


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
    answers = retrieve(run, pairs) | {zero_shot_direction(data.name): classify(run, data) for data in sets}
    if config.csls:
        answers |= {name: replace(answers[name], csls=ranks) for name, ranks in csls_ranks(run, pairs, config.csls)}
    classes = {zero_shot_direction(data.name): len(data.classes) for data in sets}
    values, replicates = dict[str, Floats](), dict[str, Floats]()
    for direction, each in answers.items():
        measures = measures_of(direction, config.ks, classes.get(direction, 0))
        values |= {measure.name: value_by_seed(measure, each.queries) for measure in measures}
        replicates |= resample(each.queries, measures, config.bootstrap, config.seed)
    return RunResult(
        name=name,
        method=run.method,
        address=str(run.root),
        seeds=run.seeds,
        trained=any(entry.steps for entry in run.trainings),
        answers=answers,
        values=values,
        replicates=replicates,
        history={entry.seed: read_history(run.folder / entry.folder) for entry in run.trainings},
        layer_pairs=read_layer_pairs(run),
        record=run.record,
    )


def retrieve(run: AlignedRun, data: TestPairs) -> dict[str, Answered]:
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

        def watch(scores: Tensor, rows: slice, columns: slice, tops: list[TopProbabilities] = tops) -> None:
            for top in tops:
                top.watch(scores, rows, columns)

        image_ranks, text_ranks = cross_ranks(image, text, owner, watch=watch)
        precision = _average_precision(image, text, owner, image_ranks)
        by_image.append((image_ranks, precision, [(top.by_row, image_ranks == 1) for top in tops]))
        reciprocal = float((1 / text_ranks).mean())  # one right image: its reciprocal rank is the precision
        by_text.append((text_ranks, reciprocal, [(top.by_column, text_ranks == 1) for top in tops]))
    images = data.image_ids
    owners = [images[position] for position in data.pairs.caption_image]
    answered = {}
    for name, ids, image_ids, found in (
        (TEXT_RETRIEVAL, images, images, by_image),
        (IMAGE_RETRIEVAL, data.caption_ids, owners, by_text),
    ):
        ranks, precisions, sure = zip(*found, strict=True)
        queries = QueryRanks(
            direction=name,
            ids=ids,
            image_ids=image_ids,
            labels=[""] * len(ids),
            seeds=run.seeds,
            ranks=np.stack(ranks),
        )
        stated = calibrate(sure, temperatures, [each[name] for each in fitted if each])
        answered[name] = Answered(queries=queries, calibration=stated, precision=np.array(precisions))
    return answered


def _average_precision(image: Tensor, text: Tensor, owner: Tensor, ranks: Ranks) -> float:
    """Return the mean average precision of images asking for captions."""
    if len(owner) == len(image):
        return float((1 / ranks).mean())
    return mean_average_precision(image, text, *captions_by_image(owner, len(image)))


def captions_by_image(owner_P: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Return the positions [P] of the captions, image by image, and where those of each image begin [M + 1]."""
    counts = torch.bincount(owner_P, minlength=images)
    return owner_P.argsort(stable=True), torch.cat([owner_P.new_zeros(1), counts.cumsum(0)])


def classify(run: AlignedRun, data: ZeroShotSet) -> Answered:
    """Return zero-shot classification of a set, all seeds."""
    temperatures = [run.temperature(seed, "classification") for seed in run.seeds]
    fitted = zero_shot_temperatures(run, data)
    features = run_features(run, data.image, data.rows)
    found, sure = [], []
    for index, seed in enumerate(run.seeds):
        classes = class_vectors(run, data, seed)
        images = run.encode("image", features, seed, task="classification")
        found.append(zero_shot_metrics(images, classes, data.target, (1,)))
        divisors = (temperatures[index][0], *fitted[index : index + 1])
        stated = [confidences(images, classes, data.target, temperature) for temperature in divisors]
        sure.append([(each.top, each.correct) for each in stated])
    queries = QueryRanks(
        direction=zero_shot_direction(data.name),
        ids=data.image_ids,
        image_ids=data.image_ids,
        labels=data.labels,
        seeds=run.seeds,
        ranks=np.stack([each.ranks for each in found]),
    )
    confusion = np.sum([each.confusion for each in found], axis=0)
    return Answered(queries=queries, calibration=calibrate(sure, temperatures, fitted), confusion=confusion)


def validation_pairs(run: AlignedRun, data: TestPairs) -> TestPairs | None:
    """Return pairs of the run's validation split; None where it is the evaluated split, or holds less than two images.

    Of many images only some are taken, evenly over the split, with all their captions.
    """
    split = str(run.config.get("validation_split", "val"))
    found = join(data.image.samples, data.text.samples, split)
    if split == data.split or len(found.image_rows) < 2:
        return None
    kept = evenly(len(found.image_rows), ROWS)
    place = np.full(len(found.image_rows), -1)
    place[kept] = np.arange(len(kept))
    owner = place[found.caption_image]
    pairs = Pairs(found.image_rows[kept], found.caption_rows[owner >= 0], owner[owner >= 0])
    return TestPairs(data.image, data.text, pairs, split)


def retrieval_temperatures(run: AlignedRun, data: TestPairs | None) -> list[dict[str, float]]:
    """Return direction → fitted temperature for each seed; empty mappings without validation pairs."""
    if data is None:
        return [{} for _ in run.seeds]
    image_features = run_features(run, data.image, data.pairs.image_rows, constant_allowed=True)
    text_features = run_features(run, data.text, data.pairs.caption_rows, constant_allowed=True)
    owner = torch.from_numpy(data.pairs.caption_image)
    captions = captions_by_image(owner, len(image_features))
    found = []
    for seed in run.seeds:
        scores = run.encode("text", text_features, seed) @ run.encode("image", image_features, seed).T
        found.append({IMAGE_RETRIEVAL: _fit(scores, owner), TEXT_RETRIEVAL: _fit(scores.T, *captions)})
    return found


def zero_shot_temperatures(run: AlignedRun, data: ZeroShotSet) -> list[float]:
    """Return the fitted temperature for each seed; nothing where no labelled row of the validation split is left."""
    rows = data.of_split(str(run.config.get("validation_split", "val")))
    if rows is None:
        return []
    kept = evenly(len(rows.rows), ROWS)
    features = run_features(run, data.image, rows.rows[kept], constant_allowed=True)
    found = []
    for seed in run.seeds:
        scores = run.encode("image", features, seed, task="classification") @ class_vectors(run, data, seed).T
        found.append(_fit(scores, torch.from_numpy(rows.target[kept])))
    return found


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many positions of `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def calibrate(
    answers: Sequence[Sequence[Answers]], temperatures: Sequence[tuple[float, str]], fitted: Sequence[float]
) -> Calibration:
    """Return the calibration of S seeds' answers, and what it is after scaling where temperatures were fitted.

    Args:
        answers: Of each seed, those at its own temperature and, where one was fitted, those at the fitted one.
        temperatures: Each seed's own temperature and where it comes from.
        fitted: Each seed's fitted temperature; empty where there is none.
    """
    own = _calibration([each[0] for each in answers], temperatures)
    if not fitted:
        return own
    return replace(own, scaled=_calibration([each[1] for each in answers], [(value, "scaled") for value in fitted]))


def _calibration(by_seed: Sequence[Answers], temperatures: Sequence[tuple[float, str]]) -> Calibration:
    """Return the calibration of S seeds' answers: numbers are means over seeds, bins hold all of them."""
    confidence, hit = (np.concatenate([pair[side] for pair in by_seed]) for side in (0, 1))
    bins = reliability(confidence, hit)
    held = np.flatnonzero(bins.count)
    columns = (column[held].tolist() for column in (bins.confidence, bins.accuracy, bins.count))
    return Calibration(
        ece=float(np.mean([reliability(*pair).error for pair in by_seed])),
        mean_max_probability=float(confidence.mean()),
        accuracy=float(hit.mean()),
        temperature=float(np.mean([value for value, _ in temperatures])),
        temperature_source=" and ".join(dict.fromkeys(source for _, source in temperatures)),
        bins=tuple(zip(*columns, strict=True)),
    )


def csls_ranks(run: AlignedRun, data: TestPairs, k: int) -> list[tuple[str, Ranks]]:
    """Return (direction, ranks [S, Q]) under CSLS with K neighbours, the bank taken from the training split.

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
    for side, asked, bank in (
        (data.image, data.pairs.image_rows, known.image_rows),
        (data.text, data.pairs.caption_rows, known.caption_rows),
    ):
        rows = (asked, bank[evenly(len(bank), BANK)])
        features[side.modality] = [run_features(run, side, each, constant_allowed=True) for each in rows]
    by_seed = []
    for seed in run.seeds:
        image, image_bank = (run.encode("image", part, seed) for part in features["image"])
        text, text_bank = (run.encode("text", part, seed) for part in features["text"])
        near_image, near_text = _nearest_mean(image, text_bank, k), _nearest_mean(text, image_bank, k)
        left, right = scaled(image, text, near_image, near_text)
        by_seed.append(cross_ranks(left, right, torch.from_numpy(data.pairs.caption_image)))
    by_image, by_text = (np.stack(ranks) for ranks in zip(*by_seed, strict=True))
    return [(TEXT_RETRIEVAL, by_image), (IMAGE_RETRIEVAL, by_text)]


def _nearest_mean(items: Tensor, bank: Tensor, k: int) -> Tensor:
    return torch.cat([nearest_mean(block, bank, k) for block in torch.split(items, BLOCK)])


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return the finite numbers of a seed's logged steps; none where nothing was logged.

    Raises:
        UserError: A line is no JSON object.
    """
    path = folder / "history.jsonl"
    if not path.is_file():
        return []
    steps = read_lines(path, "a step of a training")
    return [{name: value for name, value in step.items() if _is_finite(value)} for step in steps]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_layer_pairs(run: AlignedRun) -> dict[str, Any] | None:
    """Return the scores of all layer pairs; None where layers were not chosen by them.

    Raises:
        UserError: The file is missing, leaves the run's folder, or its scores are not one for each pair.
    """
    name = run.record.get("layer_scores")
    if not isinstance(name, str) or not name:
        return None
    try:
        path = (run.folder / name).resolve()
        inside = path.is_relative_to(run.folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        inside = False
    if not inside:
        raise UserError(expected=f"the file {name} in the run's folder", found="none", where=str(run.root))
    where = str(run.root / name)
    data = read_signed(path, "the scores of layer pairs", where)
    table = fill(_Scores, data, where)
    images, texts = len(table.image_layers), len(table.text_layers)
    for each in filter(None, (table.score, table.calibrated, table.p_value)):
        if len(each) != images or any(len(row) != texts for row in each):
            raise UserError(expected=f"a score for each of {images} × {texts} pairs", found="others", where=where)
    image, text = table.chosen or (0, 0)
    if not (0 <= image < images and 0 <= text < texts):
        raise UserError(expected="the best of the pairs", found=f"{image}, {text}", where=where)
    return data


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """What of layer_pairs.json goes into a report."""

    image_layers: list[str]
    text_layers: list[str]
    score: list[list[float]]
    calibrated: list[list[float]] | None = None
    p_value: list[list[float]] | None = None
    chosen: tuple[int, int] | None = None
