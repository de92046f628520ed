"""The chapter on what the test split shares with the training split: the numbers with and without it, and the list."""

from pipeline.evaluate.data import TestPairs
from pipeline.evaluate.duplicates import NEAR, SAME, Duplicates, Twin, without
from pipeline.evaluate.measures import Measure
from pipeline.evaluate.pictures import Pictures
from pipeline.evaluate.report.page import Cell, Example, ExampleGroup, Section, Table, Thumb
from pipeline.evaluate.report.words import measure_name, percent, signed
from pipeline.evaluate.result import RunResult
from pipeline.evaluate.summary import Summary
from pipeline.words import count

SHOWN = 12
LISTED = 200


def seen_section(
    summary: Summary, pairs: TestPairs, found: Duplicates, threshold: float, pictures: Pictures
) -> Section | None:
    """Return the numbers with and without what training has seen; none where nothing was found."""
    if not found.twins:
        return None
    images, captions = pairs.image.samples.split.count(pairs.split), len(pairs.pairs.caption_rows)
    near, same = found.count(NEAR), found.count(SAME)
    lead = (
        f"{near:,} of {count(images, 'test image')} have a training image with a cosine above {threshold:g} in the "
        "last layer of the frozen image encoder, centred on the training mean. "
        f"{same:,} of {count(captions, 'test caption')} stand in the training split word for word (but for case, "
        "blanks and marks at the end).",
        "Such queries may be remembered, not understood. Below they are left out as queries; the galleries stay whole, "
        "so both numbers are about the same task. All of them: duplicates.csv.",
    )
    tables = [_table(summary, found, NEAR, "near-duplicate images"), _table(summary, found, SAME, "repeated captions")]
    twins = [twin for twin in found.twins if twin.kind == NEAR and not twin.set]
    return Section(
        id="seen",
        title="Seen before?",
        lead=lead,
        tables=tuple(table for table in tables if table.rows),
        groups=_pairs_shown(twins, pictures),
        folded=_lists(found),
    )


def _table(summary: Summary, found: Duplicates, kind: str, what: str) -> Table:
    measures = [
        each for each in summary.measures if _is_shown(each, summary) and found.touched[kind].get(each.direction)
    ]
    rows = tuple((Cell(text=run.name), *(_cell(run, found, kind, each) for each in measures)) for run in summary.runs)
    left = ", ".join(f"{_left(summary.lead, found, kind, each)} {measure_name(each)}" for each in measures)
    caption = f"Percent without {what}; below it the number with them, and what leaving them out changes. n = {left}."
    return Table(
        caption=caption, head=("run", *map(measure_name, measures)), rows=rows if measures else (), narrow=True
    )


def _is_shown(measure: Measure, summary: Summary) -> bool:
    return measure.k == (1 if measure.macro or measure.name.endswith("acc1") else summary.k)


def _left(run: RunResult, found: Duplicates, kind: str, measure: Measure) -> str:
    ids, touched = run.queries[measure.direction].ids, found.touched[kind][measure.direction]
    return f"{sum(name not in touched for name in ids):,} of {len(ids):,}"


def _cell(run: RunResult, found: Duplicates, kind: str, measure: Measure) -> Cell:
    value = without(measure, run.queries[measure.direction], found.touched[kind][measure.direction])
    whole = run.mean(measure.name)
    if value is None:
        return Cell(text="none left", sub=f"with {percent(whole)}")
    return Cell(text=percent(value), value=value, sub=f"with {percent(whole)}, {signed(value - whole)}")


def _pairs_shown(twins: list[Twin], pictures: Pictures) -> tuple[ExampleGroup, ...]:
    if not twins or not pictures.available:
        return ()
    examples = [
        Example(
            query=twin.test,
            note=f"cosine {twin.cosine:.3f} to the training image {twin.train}",
            image=pictures.thumbnail(twin.test_content),
            answers=(Thumb(image=pictures.thumbnail(twin.train_content), note="in training"),),
        )
        for twin in twins[:SHOWN]
    ]
    lead = f"Test image on the left, training image beside it; {len(examples)} of {len(twins):,}."
    return (ExampleGroup(title="The closest pairs of images", lead=lead, examples=tuple(examples)),)


def _lists(found: Duplicates) -> tuple[tuple[str, str], ...]:
    parts = []
    for kind, title in ((NEAR, "Near-duplicate images"), (SAME, "Captions that stand in training")):
        twins = [twin for twin in found.twins if twin.kind == kind]
        lines = [_line(twin) for twin in twins[:LISTED]]
        lines += [f"… and {len(twins) - LISTED:,} more in duplicates.csv"] if len(twins) > LISTED else []
        if lines:
            parts.append((f"{title}: {len(twins):,}", "\n".join(lines)))
    return tuple(parts)


def _line(twin: Twin) -> str:
    if twin.kind == SAME:
        return f"{twin.test} = {twin.train}: {' '.join(twin.test_content.split())}"
    name = f"{twin.set}: " if twin.set else ""
    return f"{name}{twin.test} ≈ {twin.train}, cosine {twin.cosine:.3f}"
