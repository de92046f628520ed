"""The chapter on calibration: reliability diagrams and errors, with each run's own temperature and after scaling."""

from collections.abc import Sequence

from pipeline.evaluate.calibrate import DEFAULT, DEFAULT_TEMPERATURE, ROWS
from pipeline.evaluate.figures.curves import reliability
from pipeline.evaluate.figures.series import Series
from pipeline.evaluate.report.page import Cell, Picture, Section, Table
from pipeline.evaluate.report.results import part_of
from pipeline.evaluate.report.words import direction_name, percent
from pipeline.evaluate.result import Calibration, RunResult
from pipeline.evaluate.summary import Summary
from pipeline.words import listing

FULL_BIN = 10  # answers


def calibration_section(summary: Summary) -> Section:
    """Return reliability diagrams and the table of calibration errors."""
    directions = list(summary.lead.calibration)
    shown = [run for run in summary.runs if part_of(run, summary) != "other"] or list(summary.runs)
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


def _picture(summary: Summary, shown: Sequence[RunResult], direction: str, *, scaled: bool) -> Picture:
    series = []
    for run in reversed(shown):
        own = run.calibration[direction]
        each = own.scaled if scaled else own
        bins = [] if each is None else [found for found in each.bins if found[2] >= FULL_BIN]
        x, y = [confidence for confidence, _, _ in bins], [accuracy for _, accuracy, _ in bins]
        series.append(Series(name=run.name, part=part_of(run, summary), x=x, y=y))
    name = direction_name(direction)
    how = "after temperature scaling on validation" if scaled else "with the run's own temperature"
    asked = f"{len(summary.lead.queries[direction].ids):,} answers a seed"
    caption = f"{name}, {how}, {asked}. Below the dotted line a run is too sure. Bins of {FULL_BIN} answers and more."
    return Picture(svg=reliability(series, f"{name}, {how}"), caption=caption)


def _scaling(summary: Summary, directions: Sequence[str]) -> tuple[str, ...]:
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
            f"images{'; a learned one served the training loss, so their own ECE are not rivals' * others}."
        )
    if borrowed:
        verb, owner = ("has", "its") if len(borrowed) == 1 else ("have", "their")
        found.append(
            f"{listing(borrowed)} {verb} no temperature of {owner} own; {DEFAULT_TEMPERATURE:g} is used, so these rows "
            "speak of that default as well."
        )
    return tuple(found)


def _table(summary: Summary, directions: Sequence[str]) -> Table:
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
