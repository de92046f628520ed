"""The chapters on which layers were used and what was taken for what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.figures.maps import confusion_map, layer_map
from pipeline.evaluate.queries import ZERO_SHOT, zero_shot_direction
from pipeline.evaluate.report.page import Cell, Picture, Section, Table
from pipeline.evaluate.report.words import percent
from pipeline.evaluate.summary import Summary
from pipeline.evaluate.zero_shot import ZeroShotSet
from pipeline.words import count, listing

CONFUSIONS = 8


def layers_section(summary: Summary) -> Section | None:
    """Return the map of layer pairs of the best run that has one; none where layers were named by hand."""
    run = next((run for run in summary.runs if run.layer_pairs), None)
    if run is None or run.layer_pairs is None:
        return None
    table = run.layer_pairs
    scores = np.asarray(table.get("calibrated") or table["score"], dtype=np.float64)
    chosen = table.get("chosen")
    pair = (int(chosen[0]), int(chosen[1])) if chosen else None
    kind = "calibrated against shuffled pairs" if table.get("calibrated") else "raw"
    around = f"k = {table['k']}, " if table.get("k") else ""
    caption = (
        f"{table.get('metric', 'score')}, {kind}, {around}{table.get('rows', '?')} training images. "
        "The framed pair scores best."
    )
    used = f"{run.name} uses {listing(run.record['layers']['image'])} with {listing(run.record['layers']['text'])}."
    advice = str(table.get("advice", ""))
    picture = Picture(svg=layer_map(scores, table["image_layers"], table["text_layers"], pair), caption=caption)
    lead = tuple(text for text in (used, advice) if text)
    return Section(id="layers", title="Which layers agree", lead=lead, pictures=(picture,))


def zero_shot_section(summary: Summary, sets: Sequence[ZeroShotSet]) -> Section | None:
    """Return confusion matrices of the best run and what it confuses most; none without a zero-shot set."""
    if not sets:
        return None
    run = summary.lead
    pictures, tables, lead = [], [], []
    for data in sets:
        direction = zero_shot_direction(data.name)
        matrix = run.confusion[direction]
        name = data.name or "main data set"
        size = f"{len(data.classes)} classes, {count(len(data.rows), 'image')}"
        caption = f"{name}: {size}, {run.name}, all seeds together. Rows add up to 100 %."
        pictures.append(Picture(svg=confusion_map(matrix, data.classes), caption=caption))
        tables.append(_confusions(name, matrix, data.classes))
        prompts = len(data.prompts.samples.label)
        lead.append(f"{name}: {prompts / len(data.classes):.3g} prompts a class, averaged and normalised.")
    return Section(
        id=ZERO_SHOT.replace("_", "-"),
        title="Zero-shot classification",
        lead=tuple(lead),
        tables=tuple(tables),
        pictures=tuple(pictures),
    )


def _confusions(name: str, matrix: Any, classes: Sequence[str]) -> Table:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    sizes = np.maximum(matrix.sum(1), 1)
    order = [int(place) for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]]
    rows = []
    for place in order:
        true, taken = divmod(place, len(classes))
        number, size = int(wrong[true, taken]), int(sizes[true])
        if number:
            share = Cell(text=f"{percent(number / size)}", value=number / size, sub=f"{number:,} of {size:,}")
            rows.append((Cell(text=classes[true]), Cell(text=classes[taken]), share))
    caption = f"{name}: most frequent mistakes, percent of the true class, all seeds together."
    return Table(caption=caption, head=("true class", "taken for", "share"), rows=tuple(rows), narrow=True)
