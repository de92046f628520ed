"""What frozen features tell besides the metrics: what training has seen of the test split, what labels they hold.

`find_duplicates` looks for near-duplicate images and captions word for word; `without` counts a measure anew without
the queries that they touch. The galleries stay whole, so both numbers are about the same task.

`find_probes` reads labels off the last layer of the image encoder, off the layers that each run chose, and off each
run's aligned embeddings, by kNN and by a linear probe. Probes are trained on the training split's labels, so they are
no zero-shot numbers: they say what the features hold, and what alignment kept of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, run_features
from pipeline.evaluate.results import (
    IMAGE_RETRIEVAL,
    TEXT_RETRIEVAL,
    Measure,
    QueryRanks,
    value_by_seed,
    zero_shot_direction,
)
from pipeline.indexes.index import build_index
from pipeline.layers import LayerRef
from pipeline.metrics.bootstrap import Bootstrap, interval
from pipeline.metrics.classification import confusion_matrix, knn_predict, linear_probe, stratified_split
from pipeline.progress import Progress, say
from pipeline.projectors.base import unit_rows
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.samples import Samples, join
from pipeline.store.views import Rows, Side
from pipeline.words import count

NEAR, SAME = "near_duplicates", "duplicate_captions"
NEIGHBOURS = 20
MOST_ROWS = 5000
"""Training rows of a probe, at most; of more a stratified sample."""
LAST, CHOSEN, ALIGNED = "last_layer", "chosen_layers", "aligned"


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A test sample and the training sample that it is nearly, or word for word, the same as."""

    kind: str
    """`near_duplicates` (images) or `duplicate_captions`."""
    set: str
    """Data set to classify that the test image belongs to; empty for the main data set."""
    test: str
    """Id of the test sample."""
    train: str
    """Id of the training sample."""
    cosine: float
    """Cosine of centred frozen features; 1 for captions."""
    test_content: str
    """File or caption of the test sample."""
    train_content: str
    """File or caption of the training sample."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """All that was found."""

    twins: tuple[Twin, ...] = ()
    """Images first, the closest first."""
    touched: Mapping[str, Mapping[str, frozenset[str]]]
    """Kind → direction → ids of the queries that are touched."""

    def count(self, kind: str, name: str = "") -> int:
        """Return how many test samples of a kind have a twin, in one data set."""
        return sum(twin.kind == kind and twin.set == name for twin in self.twins)


def find_duplicates(
    train_splits: Sequence[str], pairs: TestPairs, sets: Sequence[ZeroShotSet], threshold: float
) -> Duplicates:
    """Look for test images and captions that are in the training splits too.

    Args:
        train_splits: Splits that runs were trained on; the evaluated samples themselves do not count.
        pairs: The test pairs.
        sets: The zero-shot sets; their images are compared with the training images of the main data set.
        threshold: Cosine above which two images count as the same picture: last layer of every image encoder, centred
            on the training mean.
    """
    samples, splits = pairs.image.samples, np.asarray(pairs.image.samples.split)
    train = np.flatnonzero(np.isin(splits, list(train_splits)) & (splits != pairs.split))
    if not len(train):
        return Duplicates(touched={NEAR: {}, SAME: {}})
    known = last_layers(pairs.image, train)

    def image_twins(name: str, image: Side, test: Rows) -> list[Twin]:
        found = near_duplicates(known, last_layers(image, test), threshold) if len(test) else []
        rows = ((int(test[a]), int(train[b]), cosine) for a, b, cosine in found)
        return [_twin(NEAR, name, cosine, (image.samples, row), (samples, twin)) for row, twin, cosine in rows]

    twins = image_twins("", pairs.image, np.flatnonzero(splits == pairs.split))
    by_id = {twin.test for twin in twins}
    images = frozenset(samples.image_id[row] for row, name in enumerate(samples.sample_id) if name in by_id)
    captions = _caption_twins(pairs, train_splits)
    asked = pairs.pairs.image_rows[pairs.pairs.caption_image].tolist()
    owners = {name: samples.image_id[row] for row, name in zip(asked, pairs.caption_ids, strict=True)}
    near = {TEXT_RETRIEVAL: images, IMAGE_RETRIEVAL: frozenset(name for name, own in owners.items() if own in images)}
    said = frozenset(twin.test for twin in captions)
    same = {IMAGE_RETRIEVAL: said, TEXT_RETRIEVAL: frozenset(owners[name] for name in said)}
    for data in sets:
        own = data.image is pairs.image
        found = twins if own else image_twins(data.name, data.image, data.rows)
        near[zero_shot_direction(data.name)] = frozenset(twin.test for twin in found)
        twins = twins if own else [*twins, *found]
    return Duplicates(twins=(*twins, *captions), touched={NEAR: near, SAME: same})


def near_duplicates(train_ND: Tensor, test_MD: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """Return (test row, training row, cosine) of each test row with a training row closer than a cosine, closest first.

    Features are centred on the training mean first: raw features of many encoders all point the same way, and every
    pair would look alike.
    """
    centre = train_ND.mean(0)
    train, test = unit_rows(train_ND - centre), unit_rows(test_MD - centre)
    scores, nearest = build_index(torch.nan_to_num(train), "flat").search(torch.nan_to_num(test), 1)
    close = (scores[:, 0] > threshold).nonzero().flatten().tolist()
    found = [(row, int(nearest[row, 0]), float(scores[row, 0])) for row in close]
    return sorted(found, key=lambda each: (-each[2], each[0]))


def without(measure: Measure, queries: QueryRanks, touched: frozenset[str]) -> float | None:
    """Return a measure, mean over seeds, without the queries of some ids; None where no query is left."""
    kept = [row for row, name in enumerate(queries.ids) if name not in touched]
    return float(value_by_seed(measure, queries.take(kept)).mean()) if kept else None


def last_layers(side: Side, rows: Rows) -> Tensor:
    """Return the last layer of every store of a side, side by side [len(rows), D]."""
    layers = [LayerRef(index, store.layers[-1].name) for index, store in enumerate(side.stores)]
    return side.read(layers, rows, constant_allowed=True)


def plain_words(caption: str) -> str:
    """Return a caption as it is compared: without case, runs of blanks, and marks at its end."""
    return " ".join(caption.casefold().split()).rstrip(" .!?")


def _caption_twins(pairs: TestPairs, train_splits: Sequence[str]) -> list[Twin]:
    texts = pairs.text.samples
    known: dict[str, int] = {}
    for split in train_splits:
        if split != pairs.split:
            for row in join(pairs.image.samples, texts, split).caption_rows.tolist():
                known.setdefault(plain_words(texts.content[row]), row)
    found = ((row, known.get(plain_words(texts.content[row]))) for row in pairs.pairs.caption_rows.tolist())
    return [_twin(SAME, "", 1.0, (texts, row), (texts, twin)) for row, twin in found if twin is not None]


def _twin(kind: str, name: str, cosine: float, test: tuple[Samples, int], train: tuple[Samples, int]) -> Twin:
    (asked, row), (known, other) = test, train
    return Twin(
        kind=kind,
        set=name,
        test=asked.sample_id[row],
        train=known.sample_id[other],
        cosine=cosine,
        test_content=asked.content[row],
        train_content=known.content[other],
    )


@dataclass(frozen=True, kw_only=True)
class ProbeRows:
    """Rows of the image store that probes are trained and tested on, and their classes."""

    train: Rows
    train_target: Rows
    test: Rows
    test_target: Rows
    split: str
    """Where the rows come from, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe of one kind of features."""

    set: str
    """Data set with the classes; empty for the main one."""
    features: str
    """last_layer, chosen_layers or aligned."""
    runs: tuple[str, ...]
    """Runs that it speaks of: several where they share their features."""
    layers: str
    """Layers that the features come from."""
    method: str
    """knn or linear."""
    acc1: float
    low: float
    high: float
    """Ends of the interval of acc1 over test images."""
    mean_per_class_recall: float
    setting: float
    """k of kNN, C of the linear probe."""
    train_rows: int
    test_rows: int
    split: str


def find_probes(
    runs: Mapping[str, AlignedRun], sets: Sequence[ZeroShotSet], config: EvaluateConfig, progress: Progress
) -> list[Probe]:
    """Probe every set that has labels to learn from; nothing where probes are switched off."""
    found: list[Probe] = []
    split = str(next(iter(runs.values())).config.get("train_split", "train"))
    for data in sets if config.probes else ():
        rows = probe_rows(data, split)
        if rows is not None:
            say(progress, f"probing {data.name or 'the classes'}, {count(len(rows.train), 'training image')}")
            found += _probe_set(data, runs, rows, config)
    return found


def probe_rows(data: ZeroShotSet, train_split: str, seed: int = 0) -> ProbeRows | None:
    """Return the rows to probe with: the training split's labelled images, or half of the evaluated ones.

    None where there are no two classes to learn from, or nothing is left to test.
    """
    found = data.of_split(train_split)
    if found is not None:
        train, train_target, test, test_target = found.rows, found.target, data.rows, data.target
        split = f"trained on split {train_split}, tested on split {data.split}"
    else:
        ours, theirs = stratified_split(data.target, 0.5, seed)
        train, train_target = data.rows[ours], data.target[ours]
        test, test_target = data.rows[theirs], data.target[theirs]
        split = (
            f"no other labelled images in split {train_split}: trained on a stratified half of split {data.split} "
            f"(seed {seed}), tested on the other half"
        )
    if len(train) > MOST_ROWS:
        _, kept = stratified_split(train_target, MOST_ROWS / len(train), seed)
        split += f"; {len(kept):,} of {len(train):,} training images, a stratified sample"
        train, train_target = train[kept], train_target[kept]
    if len(np.unique(train_target)) < 2 or not len(test):
        return None
    return ProbeRows(train=train, train_target=train_target, test=test, test_target=test_target, split=split)


def _probe_set(
    data: ZeroShotSet, runs: Mapping[str, AlignedRun], rows: ProbeRows, config: EvaluateConfig
) -> Iterator[Probe]:
    """Probe all features of one set: frozen ones once, aligned ones by each run's first seed."""
    classes, target = len(data.classes), torch.from_numpy(rows.train_target)
    for features, names, layers, train, test in _probed(data, runs, rows):
        near, centre = min(NEIGHBOURS, len(train)), train.mean(0)
        by_knn = knn_predict(train - centre, target, test - centre, near, classes)
        by_line = linear_probe(train, target, test)
        for method, predicted, setting in (("knn", by_knn, near), ("linear", by_line.predictions, by_line.strength)):
            hits = predicted == rows.test_target
            drawn = Bootstrap(images=len(hits), samples=config.bootstrap, seed=0)
            replicates = drawn.replicates([(hits[:, None], np.ones((len(hits), 1)))])[0]
            low, high = interval(replicates, config.confidence, len(hits))
            confusion = confusion_matrix(torch.from_numpy(rows.test_target), torch.from_numpy(predicted), classes)
            held = confusion.sum(1) > 0
            yield Probe(
                set=data.name,
                features=features,
                runs=names,
                layers=layers,
                method=method,
                acc1=float(hits.mean()),
                low=low,
                high=high,
                mean_per_class_recall=float((np.diag(confusion)[held] / confusion.sum(1)[held]).mean()),
                setting=setting,
                train_rows=len(rows.train),
                test_rows=len(rows.test),
                split=rows.split,
            )


def _probed(
    data: ZeroShotSet, runs: Mapping[str, AlignedRun], rows: ProbeRows
) -> Iterator[tuple[str, tuple[str, ...], str, Tensor, Tensor]]:
    """Yield kind, runs, layers, training [N, D] and test features [M, D] of all that is probed."""
    last = " + ".join(store.layers[-1].name for store in data.image.stores)
    yield LAST, tuple(runs), last, last_layers(data.image, rows.train), last_layers(data.image, rows.test)
    for layers in dict.fromkeys(run.layers["image"] for run in runs.values()):
        sharing = {name: run for name, run in runs.items() if run.layers["image"] == layers}
        first, label = next(iter(sharing.values())), " + ".join(layers)
        train, test = (run_features(first, data.image, at, constant_allowed=True) for at in (rows.train, rows.test))
        yield CHOSEN, tuple(sharing), label, train, test
        for name, run in sharing.items():
            aligned_train, aligned_test = (
                run.encode("image", part, run.seeds[0], task="classification") for part in (train, test)
            )
            yield ALIGNED, (name,), label, aligned_train, aligned_test


def probe_metrics(probes: Sequence[Probe], run: str) -> dict[str, float | int | str]:
    """Return what metrics.json holds of the probes that speak of a run."""
    table: dict[str, float | int | str] = {}
    for each in probes:
        if run in each.runs:
            prefix = f"{each.set}/" if each.set else ""
            name = f"{prefix}probe_{each.method}_{each.features}"
            table[f"{name}_acc1"] = each.acc1
            table[f"{name}_mean_per_class_recall"] = each.mean_per_class_recall
            table[f"{prefix}probe_train_n"] = each.train_rows
            table[f"{prefix}probe_n"] = each.test_rows
            table[f"{prefix}probe_split"] = each.split
    return table
