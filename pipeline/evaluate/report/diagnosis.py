"""The chapters on calibration, layers, what was taken for what, and training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluate.calibrate import ROWS, Calibration
from pipeline.evaluate.data import ZeroShotSet
from pipeline.evaluate.figures import COLOURS, Series, confusion_map, layer_map, reliability, step_curves
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.queries import ZERO_SHOT, zero_shot_direction
from pipeline.evaluate.report.page import Cell, Picture, Section, Table, direction_name, percent
from pipeline.evaluate.report.results import role_of
from pipeline.evaluate.single import RunResult
from pipeline.projectors.run_record import DEFAULT, DEFAULT_TEMPERATURE
from pipeline.words import count, listing

FULL_BIN = 10  # answers
CONFUSIONS = 8


def calibration_section(summary: Leaderboard) -> Section:
    """Return reliability diagrams and the table of calibration errors."""
    directions = list(summary.lead.calibration)
    shown = [run for run in summary.runs if role_of(run, summary) != "other"] or list(summary.runs)
    pictures = [
        _picture(summary, shown, direction, scaled=scaled)
        for direction in directions
        for scaled in (False, True)
        if not scaled or any(run.calibration[direction].scaled for run in shown)
    ]
    lead = (
        "Confidence is the softmax of cosine over temperature; ECE is its mean distance from the share that was right, "
        "over 15 bins.",
        *_scaling(summary, directions),
        *_temperatures(summary),
    )
    return Section(
        id="calibration",
        title="Does it know when it is right?",
        lead=lead,
        tables=(_table(summary, directions),),
        pictures=tuple(pictures),
    )


def _picture(summary: Leaderboard, shown: Sequence[RunResult], direction: str, *, scaled: bool) -> Picture:
    series = []
    for run in reversed(shown):
        own = run.calibration[direction]
        each = own.scaled if scaled else own
        bins = [] if each is None else [found for found in each.bins if found[2] >= FULL_BIN]
        x, y = [confidence for confidence, _, _ in bins], [accuracy for _, accuracy, _ in bins]
        series.append(Series(name=run.name, role=role_of(run, summary), x=x, y=y))
    name = direction_name(direction)
    how = "after temperature scaling on validation" if scaled else "with the run's own temperature"
    asked = f"{len(summary.lead.queries[direction].ids):,} answers a seed"
    caption = f"{name}, {how}, {asked}. Below the dotted line a run is too sure. Bins of {FULL_BIN} answers and more."
    return Picture(svg=reliability(series, f"{name}, {how}"), caption=caption)


def _scaling(summary: Leaderboard, directions: Sequence[str]) -> tuple[str, ...]:
    """Say what scaling is, and where there was nothing to fit it on."""
    missing = [
        direction_name(direction)
        for direction in directions
        if not any(run.calibration[direction].scaled for run in summary.runs)
    ]
    text = (
        "Scaled: one temperature for each run and direction, at which the right answers of validation rows "
        f"({ROWS} images at most) are most likely. It changes no rank. This is the column to compare runs by."
    )
    none = f"No rows of a validation split for {listing(missing)}: not scaled there."
    return (*((text,) if len(missing) < len(directions) else ()), *((none,) if missing else ()))


def _temperatures(summary: Leaderboard) -> tuple[str, ...]:
    """Say where the temperatures come from: they were not all made for calibration."""
    sources = {run.name: next(iter(run.calibration.values())).temperature_source for run in summary.runs}
    fitted = [name for name, source in sources.items() if source == "validation"]
    borrowed = [name for name, source in sources.items() if DEFAULT in source]
    found = []
    if fitted:
        others = len(fitted) + len(borrowed) < len(sources)
        found.append(
            f"The temperature of {listing(fitted)} was fitted on validation captions, for the likelihood of their "
            f"images{'; a learned one served the training loss, so their own ECE are not rivals' * others}."
        )
    if borrowed:
        verb, owner = ("has", "its") if len(borrowed) == 1 else ("have", "their")
        found.append(
            f"{listing(borrowed)} {verb} no temperature of {owner} own; {DEFAULT_TEMPERATURE:g} is used, so these rows "
            "speak of that default as well."
        )
    return tuple(found)


def _table(summary: Leaderboard, directions: Sequence[str]) -> Table:
    names = [direction_name(direction) for direction in directions]
    head = ("run", "own temperature", *(text for name in names for text in (f"{name} ECE", f"{name} ECE, scaled")))
    rows = []
    for run in summary.runs:
        first = next(iter(run.calibration.values()))
        cells = [
            cell
            for own in (run.calibration[direction] for direction in directions)
            for cell in (_cell(own), _cell(own.scaled, f"at {own.scaled.temperature:.3f}" if own.scaled else ""))
        ]
        temperature = Cell(text=f"{first.temperature:.3f}", value=first.temperature, sub=first.temperature_source)
        rows.append((Cell(text=run.name), temperature, *cells))
    caption = (
        "Percent, mean over seeds; below it the mean confidence and the share that was right. A small ECE is good."
    )
    return Table(caption=caption, head=head, rows=tuple(rows))


def _cell(each: Calibration | None, note: str = "") -> Cell:
    if each is None:
        return Cell(text="–")
    sub = f"{percent(each.mean_max_probability)} against {percent(each.accuracy)}"
    return Cell(text=f"{percent(each.ece)} {note}".strip(), value=each.ece, sub=sub)


def layers_section(summary: Leaderboard) -> Section | None:
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


def zero_shot_section(summary: Leaderboard, sets: Sequence[ZeroShotSet]) -> Section | None:
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


def training_section(summary: Leaderboard) -> Section | None:
    """Return the curves of what was logged by each run's first seed; none where nothing was."""
    loss = [line for run in summary.runs for line in _logged(run, summary, "loss")]
    if not loss:
        return None
    weights = [
        line
        for run in summary.runs
        if _varies(run, "lambda_i2t")
        for name, dashed in (("lambda_i2t", False), ("lambda_t2i", True))
        for line in _logged(run, summary, name, dashed=dashed)
    ]
    structure = [line for run in summary.runs for line in _logged(run, summary, "structure")]
    figures = (
        (loss, "loss", None, "Loss, first seed of each run. Losses of different methods do not compare."),
        (
            weights,
            "direction weight λ",
            0.5,
            "Weight of each direction: solid image→text, dashed text→image, dotted ½.",
        ),
        (structure, "structure term", None, "Structure regulariser, before its weight."),
    )
    pictures = [
        Picture(svg=step_curves(_coloured(lines), label, reference), caption=caption)
        for lines, label, reference, caption in figures
        if lines
    ]
    return Section(id="training", title="Training", pictures=tuple(pictures))


def _coloured(lines: Sequence[Series]) -> list[Series]:
    """Give the colours that a figure does not use to its grey lines, where there are enough of them."""
    grey = list(dict.fromkeys(line.name for line in lines if line.role == "other"))
    used = {line.role for line in lines}
    free = [part for part in COLOURS if part not in used and part != "other"]
    if len(grey) > len(free):
        return list(lines)
    chosen = dict(zip(grey, free, strict=False))
    return [replace(line, role=chosen.get(line.name, line.role)) for line in lines]


def _logged(run: RunResult, summary: Leaderboard, name: str, *, dashed: bool = False) -> list[Series]:
    rows = next(iter(run.history.values()), [])
    points = [(row["step"], row[name]) for row in rows if _number(row.get("step")) and _number(row.get(name))]
    if len(points) < 2:
        return []
    steps, values = zip(*points, strict=True)
    return [Series(name=run.name, role=role_of(run, summary), x=steps, y=values, dashed=dashed)]


def _varies(run: RunResult, name: str) -> bool:
    values = {row.get(name) for row in next(iter(run.history.values()), []) if _number(row.get(name))}
    return len(values) > 1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
