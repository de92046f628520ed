"""The chapter on training: loss, direction weights and structure term over steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluate.figures.curves import step_curves
from pipeline.evaluate.figures.series import COLOURS, Series
from pipeline.evaluate.report.page import Picture, Section
from pipeline.evaluate.report.results import part_of
from pipeline.evaluate.result import RunResult
from pipeline.evaluate.summary import Summary


def training_section(summary: Summary) -> Section | None:
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
    grey = list(dict.fromkeys(line.name for line in lines if line.part == "other"))
    used = {line.part for line in lines}
    free = [part for part in COLOURS if part not in used and part != "other"]
    if len(grey) > len(free):
        return list(lines)
    chosen = dict(zip(grey, free, strict=False))
    return [replace(line, part=chosen.get(line.name, line.part)) for line in lines]


def _logged(run: RunResult, summary: Summary, name: str, *, dashed: bool = False) -> list[Series]:
    rows = next(iter(run.history.values()), [])
    points = [(row["step"], row[name]) for row in rows if _number(row.get("step")) and _number(row.get(name))]
    if len(points) < 2:
        return []
    steps, values = zip(*points, strict=True)
    return [Series(name=run.name, part=part_of(run, summary), x=steps, y=values, dashed=dashed)]


def _varies(run: RunResult, name: str) -> bool:
    values = {row.get(name) for row in next(iter(run.history.values()), []) if _number(row.get(name))}
    return len(values) > 1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
