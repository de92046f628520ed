"""The chapters on calibration, layers, what was taken for what, and training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.calibrate import ROWS, Calibration
from pipeline.evaluate.data import ZeroShotSet
from pipeline.evaluate.figures import COLOURS, Series, confusion_map, layer_map, reliability, step_curves
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.queries import ZERO_SHOT, zero_shot_direction
from pipeline.evaluate.report.page import Cell, Picture, Section, Table, direction_name, percent
from pipeline.evaluate.report.results import role_of
from pipeline.evaluate.single import RunResult, is_number
from pipeline.projectors.run_record import DEFAULT, DEFAULT_TEMPERATURE
from pipeline.words import count, listing

FULL_BIN = 10  # answers
CONFUSIONS = 8


def calibration_section(board: Leaderboard) -> Section:
    """Return reliability diagrams and the table of calibration errors."""
    directions = list(board.lead.calibration)
    shown = [run for run in board.runs if role_of(run, board) != "other"] or list(board.runs)
    pictures = [
        _picture(board, shown, direction, scaled=scaled)
        for direction in directions
        for scaled in (False, True)
        if not scaled or any(run.calibration[direction].scaled for run in shown)
    ]
    lead = (
        "Confidence is the softmax of cosine over temperature; ECE is its mean distance from the share that was right, "
        "over 15 bins.",
        *_scaling(board, directions),
        *_temperatures(board),
    )
    return Section(
        id="calibration",
        title="Does it know when it is right?",
        lead=lead,
        tables=(_calibration_table(board, directions),),
        pictures=tuple(pictures),
    )


def _picture(board: Leaderboard, shown: Sequence[RunResult], direction: str, *, scaled: bool) -> Picture:
    series = []
    for run in reversed(shown):
        own = run.calibration[direction]
        each = own.scaled if scaled else own
        bins = [] if each is None else [found for found in each.bins if found[2] >= FULL_BIN]
        x, y = ([found[axis] for found in bins] for axis in (0, 1))
        series.append(Series(name=run.name, role=role_of(run, board), x=x, y=y))
    how = "after temperature scaling on validation" if scaled else "with the run's own temperature"
    name = f"{direction_name(direction)}, {how}"
    asked = f"{len(board.lead.queries[direction].ids):,} answers a seed"
    caption = f"{name}, {asked}. Below the dotted line a run is too sure. Bins of {FULL_BIN} answers and more."
    return Picture(svg=reliability(series, name), caption=caption)


def _scaling(board: Leaderboard, directions: Sequence[str]) -> Iterator[str]:
    """Say what scaling is, and where there was nothing to fit it on."""
    missing = [each for each in directions if not any(run.calibration[each].scaled for run in board.runs)]
    if len(missing) < len(directions):
        yield (
            "Scaled: one temperature for each run and direction, at which the right answers of validation rows "
            f"({ROWS} images at most) are most likely. It changes no rank. This is the column to compare runs by."
        )
    if missing:
        yield f"No rows of a validation split for {listing([*map(direction_name, missing)])}: not scaled there."


def _temperatures(board: Leaderboard) -> Iterator[str]:
    """Say where the temperatures come from: they were not all made for calibration."""
    sources = {run.name: next(iter(run.calibration.values())).temperature_source for run in board.runs}
    fitted = [name for name, source in sources.items() if source == "validation"]
    borrowed = [name for name, source in sources.items() if DEFAULT in source]
    if fitted:
        others = len(fitted) + len(borrowed) < len(sources)
        yield (
            f"The temperature of {listing(fitted)} was fitted on validation captions, for the likelihood of their "
            f"images{'; a learned one served the training loss, so their own ECE are not rivals' * others}."
        )
    if borrowed:
        verb, owner = ("has", "its") if len(borrowed) == 1 else ("have", "their")
        yield (
            f"{listing(borrowed)} {verb} no temperature of {owner} own; {DEFAULT_TEMPERATURE:g} is used, so these rows "
            "speak of that default as well."
        )


def _calibration_table(board: Leaderboard, directions: Sequence[str]) -> Table:
    rows = []
    for run in board.runs:
        first = next(iter(run.calibration.values()))
        cells = [Cell(text=f"{first.temperature:.3f}", value=first.temperature, sub=first.temperature_source)]
        for own in (run.calibration[direction] for direction in directions):
            cells += [_ece(own), _ece(own.scaled, f" at {own.scaled.temperature:.3f}" if own.scaled else "")]
        rows.append((Cell(text=run.name), *cells))
    names = [direction_name(direction) for direction in directions]
    return Table(
        caption="Percent, mean over seeds; below it the mean confidence and the share that was right. A small ECE is "
        "good.",
        head=("run", "own temperature", *(text for name in names for text in (f"{name} ECE", f"{name} ECE, scaled"))),
        rows=tuple(rows),
    )


def _ece(each: Calibration | None, note: str = "") -> Cell:
    if each is None:
        return Cell(text="–")
    sub = f"{percent(each.mean_max_probability)} against {percent(each.accuracy)}"
    return Cell(text=f"{percent(each.ece)}{note}", value=each.ece, sub=sub)


def layers_section(board: Leaderboard) -> Section | None:
    """Return the map of layer pairs of the best run that has one; none where layers were named by hand."""
    run = next((run for run in board.runs if run.layer_pairs), None)
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
    picture = Picture(svg=layer_map(scores, table["image_layers"], table["text_layers"], pair), caption=caption)
    lead = tuple(filter(None, (used, str(table.get("advice", "")))))
    return Section(id="layers", title="Which layers agree", lead=lead, pictures=(picture,))


def zero_shot_section(board: Leaderboard, sets: Sequence[ZeroShotSet]) -> Section | None:
    """Return confusion matrices of the best run and what it confuses most; none without a zero-shot set."""
    if not sets:
        return None
    pictures, tables, lead = [], [], []
    for data in sets:
        matrix, name = board.lead.confusion[zero_shot_direction(data.name)], data.name or "main data set"
        size = f"{len(data.classes)} classes, {count(len(data.rows), 'image')}"
        caption = f"{name}: {size}, {board.lead.name}, all seeds together. Rows add up to 100 %."
        pictures.append(Picture(svg=confusion_map(matrix, data.classes), caption=caption))
        tables.append(_confusions(name, matrix, data.classes))
        prompts = len(data.prompts.samples.label) / len(data.classes)
        lead.append(f"{name}: {prompts:.3g} prompts a class, averaged and normalised.")
    return Section(
        id=ZERO_SHOT.replace("_", "-"),
        title="Zero-shot classification",
        lead=tuple(lead),
        tables=tuple(tables),
        pictures=tuple(pictures),
    )


def _confusions(name: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> Table:
    wrong, sizes = matrix * (1 - np.eye(len(classes), dtype=np.int64)), matrix.sum(1)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist():
        true, taken = divmod(place, len(classes))
        number, size = int(wrong[true, taken]), int(sizes[true])
        if number:
            share = Cell.percent(number / size, f"{number:,} of {size:,}")
            rows.append((Cell(text=classes[true]), Cell(text=classes[taken]), share))
    caption = f"{name}: most frequent mistakes, percent of the true class, all seeds together."
    return Table(caption=caption, head=("true class", "taken for", "share"), rows=tuple(rows), narrow=True)


def training_section(board: Leaderboard) -> Section | None:
    """Return the curves of what was logged by each run's first seed; none where nothing was."""
    loss, structure = _logged(board, "loss"), _logged(board, "structure")
    if not loss:
        return None
    varying = [run.name for run in board.runs if len({value for _, value in _points(run, "lambda_i2t")}) > 1]
    both = [*_logged(board, "lambda_i2t"), *_logged(board, "lambda_t2i", dashed=True)]
    weights = sorted((line for line in both if line.name in varying), key=lambda line: varying.index(line.name))
    said = "Loss, first seed of each run. Losses of different methods do not compare."
    directions = "Weight of each direction: solid image→text, dashed text→image, dotted ½."
    figures = (
        (loss, "loss", None, said),
        (weights, "direction weight λ", 0.5, directions),
        (structure, "structure term", None, "Structure regulariser, before its weight."),
    )
    pictures = (
        Picture(svg=step_curves(_coloured(lines), label, reference), caption=caption)
        for lines, label, reference, caption in figures
        if lines
    )
    return Section(id="training", title="Training", pictures=tuple(pictures))


def _coloured(lines: Sequence[Series]) -> list[Series]:
    """Give the colours that a figure does not use to its grey lines, where there are enough of them."""
    grey = list(dict.fromkeys(line.name for line in lines if line.role == "other"))
    free = [role for role in COLOURS if role not in {line.role for line in lines} and role != "other"]
    if len(grey) > len(free):
        return list(lines)
    chosen = dict(zip(grey, free, strict=False))
    return [replace(line, role=chosen.get(line.name, line.role)) for line in lines]


def _logged(board: Leaderboard, name: str, *, dashed: bool = False) -> list[Series]:
    """Return the line of every run that logged a quantity twice or more."""
    found = []
    for run in board.runs:
        points = _points(run, name)
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            found.append(Series(name=run.name, role=role_of(run, board), x=x, y=y, dashed=dashed))
    return found


def _points(run: RunResult, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of what a run's first seed logged."""
    rows = next(iter(run.history.values()), [])
    return [(row["step"], row[name]) for row in rows if is_number(row.get("step")) and is_number(row.get(name))]
