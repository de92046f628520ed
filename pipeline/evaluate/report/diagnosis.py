"""The chapters on which layers were used and how the runs err: layers, calibration, zero-shot."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.calibrate import DEFAULT, DEFAULT_TEMPERATURE
from pipeline.evaluate.figures.curves import reliability
from pipeline.evaluate.figures.maps import confusion_map, layer_map
from pipeline.evaluate.figures.series import Series
from pipeline.evaluate.queries import ZERO_SHOT, zero_shot_direction
from pipeline.evaluate.report.page import Cell, Picture, Section, Table
from pipeline.evaluate.report.results import part_of
from pipeline.evaluate.report.words import count, direction_name, listing, percent
from pipeline.evaluate.result import Calibration
from pipeline.evaluate.summary import Summary
from pipeline.evaluate.zero_shot import ZeroShotSet

CONFUSIONS = 8
FULL_BIN = 10  # answers


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


def calibration_section(summary: Summary) -> Section:
    """Return reliability diagrams and the table of calibration errors."""
    directions = list(summary.lead.calibration)
    shown = [run for run in summary.runs if part_of(run, summary) != "other"] or list(summary.runs)
    pictures = []
    for direction in directions:
        series = [
            Series(
                name=run.name,
                part=part_of(run, summary),
                x=[confidence for confidence, _, number in run.calibration[direction].bins if number >= FULL_BIN],
                y=[accuracy for _, accuracy, number in run.calibration[direction].bins if number >= FULL_BIN],
            )
            for run in reversed(shown)
        ]
        name = direction_name(direction)
        asked = f"{len(summary.lead.queries[direction].ids):,} answers a seed"
        caption = f"{name}, {asked}. Below the dotted line a run is too sure. Bins of {FULL_BIN} answers and more."
        pictures.append(Picture(svg=reliability(series, name), caption=caption))
    lead = (
        "Confidence is the softmax of cosine over temperature; ECE is its mean distance from the share that was right, "
        "over 15 bins.",
        *_temperatures(summary),
    )
    return Section(
        id="calibration",
        title="Does it know when it is right?",
        lead=lead,
        tables=(_calibration_table(summary, directions),),
        pictures=tuple(pictures),
    )


def _temperatures(summary: Summary) -> tuple[str, ...]:
    """Say where the temperatures come from: they were not all made for calibration."""
    sources = {run.name: next(iter(run.calibration.values())).temperature_source for run in summary.runs}
    fitted = [name for name, source in sources.items() if source == "validation"]
    borrowed = [name for name, source in sources.items() if DEFAULT in source]
    found = []
    if fitted:
        others = len(fitted) + len(borrowed) < len(sources)
        found.append(
            f"The temperature of {listing(fitted)} was fitted on validation captions, for the likelihood of their "
            f"images{'; a learned one served the training loss, so an ECE here and there are not rivals' * others}."
        )
    if borrowed:
        verb, owner = ("has", "its") if len(borrowed) == 1 else ("have", "their")
        found.append(
            f"{listing(borrowed)} {verb} no temperature of {owner} own; {DEFAULT_TEMPERATURE:g} is used, so these rows "
            "speak of that default as well."
        )
    return tuple(found)


def _calibration_table(summary: Summary, directions: Sequence[str]) -> Table:
    head = ("run", "temperature", *(f"{direction_name(direction)} ECE" for direction in directions))
    rows = []
    for run in summary.runs:
        first = next(iter(run.calibration.values()))
        cells = [_calibration_cell(run.calibration[direction]) for direction in directions]
        temperature = Cell(text=f"{first.temperature:.3f}", value=first.temperature, sub=first.temperature_source)
        rows.append((Cell(text=run.name), temperature, *cells))
    caption = (
        "Percent, mean over seeds; below it the mean confidence and the share that was right. A small ECE is good."
    )
    return Table(caption=caption, head=head, rows=tuple(rows))


def _calibration_cell(each: Calibration) -> Cell:
    sub = f"{percent(each.mean_max_probability)} against {percent(each.accuracy)}"
    return Cell(text=percent(each.ece), value=each.ece, sub=sub)


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
