"""What labels can be read off the image features, frozen and aligned: kNN and a linear probe.

`probe_set` probes one data set with classes: the last layer of the image encoder, the layers that each run chose, and
each run's aligned embeddings. Probes are trained on the training split's labels, so they are no zero-shot numbers: they
say what the features hold, and what alignment kept of it. `probes_section` is the report's chapter about it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluate.data import ZeroShotSet, run_features
from pipeline.evaluate.duplicates import last_layers
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.report.page import Cell, Section, Table, between
from pipeline.metrics.bootstrap import Bootstrap, interval
from pipeline.metrics.classification import confusion_matrix, knn_predict, linear_probe, stratified_split
from pipeline.projectors.run_record import AlignedRun
from pipeline.words import listing

NEIGHBOURS = 20
MOST_ROWS = 5000
"""Training rows of a probe, at most; of more a stratified sample."""
LAST, CHOSEN, ALIGNED = "last_layer", "chosen_layers", "aligned"
NAMED = 3
TITLES = {LAST: "last layer", CHOSEN: "chosen layers", ALIGNED: "aligned"}
Rows = NDArray[np.int64]


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
    """Ends of the bootstrap interval of acc1."""
    mean_per_class_recall: float
    setting: float
    """k of kNN, C of the linear probe."""
    train_rows: int
    test_rows: int
    split: str


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


def probe_set(
    data: ZeroShotSet, runs: Mapping[str, AlignedRun], rows: ProbeRows, *, samples: int, confidence: float
) -> Iterator[Probe]:
    """Probe all features of one set: frozen ones once, aligned ones by each run's first seed.

    Args:
        data: The set.
        runs: Name → run.
        rows: What `probe_rows` returned.
        samples: Bootstrap samples.
        confidence: Share of them inside the interval.
    """
    classes, target = len(data.classes), torch.from_numpy(rows.train_target)
    for features, names, layers, train, test in _features(data, runs, rows):
        near, centre = min(NEIGHBOURS, len(train)), train.mean(0)
        by_knn = knn_predict(train - centre, target, test - centre, near, classes)
        by_line = linear_probe(train, target, test)
        for method, predicted, setting in (("knn", by_knn, near), ("linear", by_line.predictions, by_line.strength)):
            hits = predicted == rows.test_target
            sums = [(hits[:, None], np.ones((len(hits), 1)))]
            low, high = interval(Bootstrap(images=len(hits), samples=samples, seed=0).replicates(sums)[0], confidence)
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


def _features(
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
            aligned_train, aligned_test = (run.encode("image", part, run.seeds[0]) for part in (train, test))
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


def probes_section(board: Leaderboard, probes: Sequence[Probe]) -> Section | None:
    """Return the tables of probes; none where nothing was probed."""
    if not probes:
        return None
    lead = (
        "kNN and a linear classifier, trained on labels: they say what the image features hold, and what of it the "
        f"alignment kept. kNN: {NEIGHBOURS} nearest by cosine around the training mean, votes weighed by similarity. "
        "Linear: logistic regression on standardised features, C chosen on a fifth of the training rows. Aligned: the "
        "first seed.",
    )
    sets = dict.fromkeys(probe.set for probe in probes)
    tables = tuple(_table(name, [probe for probe in probes if probe.set == name], board) for name in sets)
    return Section(id="probes", title="What the features hold", lead=lead, tables=tables)


def _table(name: str, probes: Sequence[Probe], board: Leaderboard) -> Table:
    by_features: dict[tuple[str, tuple[str, ...]], dict[str, Probe]] = {}
    for probe in probes:
        by_features.setdefault((probe.features, probe.runs), {})[probe.method] = probe
    best = {method: max(probe.acc1 for probe in probes if probe.method == method) for method in ("knn", "linear")}
    order = {run.name: place for place, run in enumerate(board.runs)}
    ranked = sorted(by_features.items(), key=lambda item: (list(TITLES).index(item[0][0]), order[item[0][1][0]]))
    rows = tuple(_row(features, runs, found, best) for (features, runs), found in ranked)
    first = probes[0]
    caption = (
        f"{name or 'main data set'}: percent, below it the {100 * board.confidence:.0f} % interval over test images. "
        f"{first.train_rows:,} training and {first.test_rows:,} test images; {first.split}."
    )
    head = ("features", "kNN acc@1", "kNN per-class", "linear acc@1", "linear per-class", "C")
    return Table(caption=caption, head=head, rows=rows)


def _row(features: str, runs: tuple[str, ...], found: dict[str, Probe], best: dict[str, float]) -> tuple[Cell, ...]:
    knn, linear = found["knn"], found["linear"]
    name, note = TITLES[features], f"frozen, {knn.layers}"
    if features == ALIGNED:
        name, note = runs[0], name
    elif features == CHOSEN:
        note += f" ({listing(runs) if len(runs) <= NAMED else f'{len(runs)} runs'})"
    cells = [Cell(text=name, sub=note)]
    for probe in (knn, linear):
        cells.append(Cell.percent(probe.acc1, between(probe.low, probe.high), best=probe.acc1 == best[probe.method]))
        cells.append(Cell.percent(probe.mean_per_class_recall))
    return (*cells, Cell(text=f"{linear.setting:g}", value=linear.setting))
