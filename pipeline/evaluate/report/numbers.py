"""The chapters on the numbers: side by side, paired differences, what training has seen, further down the list."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.evaluate.features import NEAR, SAME, Duplicates, Twin, without
from pipeline.evaluate.figures import Series, recall_curves
from pipeline.evaluate.leaderboard import MEAN, Difference, Leaderboard, headline_names
from pipeline.evaluate.report.page import (
    Cell,
    Example,
    ExampleGroup,
    Findings,
    Picture,
    Pictures,
    Section,
    Table,
    Thumb,
    between,
    direction_name,
    measure_name,
    percent,
    plus_minus,
    signed,
)
from pipeline.evaluate.report.summary import declared, queries_asked
from pipeline.evaluate.results import (
    CURVE,
    RETRIEVAL,
    TEXT_RETRIEVAL,
    Measure,
    RunResult,
    chance_level,
)
from pipeline.words import count

FEW = 20
"""Comparisons below which luck is not worth a sentence."""
SHOWN = 12
LISTED = 200


def results_section(found: Findings) -> Section:
    """Return the table of all runs and all measures."""
    board = found.board
    best = {name: max(run.mean(name) for run in board.runs) for name in board.names}
    rows = tuple(
        (
            Cell(text=run.name, sub="" if run.trained else "no training"),
            *(_cell(board, run, name, best[name]) for name in board.names),
        )
        for run in board.runs
    )
    caption = (
        f"Percent: mean ± s.d. over seeds, below it the {100 * board.confidence:.0f} % interval over test images. "
        f"Queries: {queries_asked(board)}. Bold: the highest, which need not be the surely best. Click a heading to "
        "sort."
    )
    head, foot = map(measure_name, board.measures), (percent(board.chance[name]) for name in board.names)
    table = Table(caption=caption, head=("run", *head), rows=rows, foot=("chance", *foot))
    return Section(id="results", title="Results", tables=(table,))


def short_table(board: Leaderboard) -> Table:
    """Return the runs by their headline measures alone, as the first screen shows them."""
    names = [*headline_names(board.k), *(each.name for each in board.measures if each.name.endswith("acc1"))][:3]
    shown = [each for name in names for each in board.measures if each.name == name]
    best = {each: max(run.mean(each.name) for run in board.runs) for each in shown}

    def cells(run: RunResult) -> Iterator[Cell]:
        for each in shown:
            value = run.mean(each.name)
            yield Cell.percent(value, best=len(board.runs) > 1 and value == best[each])

    chance = tuple(percent(board.chance[each.name]) for each in shown)
    table = Table.of_runs(board.runs, ("run", *map(measure_name, shown)), cells, "Percent. Intervals: see Results.")
    return replace(table, foot=("chance", *chance))


def _cell(board: Leaderboard, run: RunResult, measure: str, best: float) -> Cell:
    value = run.mean(measure)
    text = f"{percent(value)} {plus_minus(run.deviation(measure))}".strip()
    sub = between(*board.interval(run, measure))
    return Cell(text=text, sub=sub, value=value, best=len(board.runs) > 1 and value == best)


def differences_section(found: Findings) -> Section | None:
    """Return paired differences against the baselines; none where no run of a baseline is here."""
    board = found.board
    differences = board.differences()
    if not differences:
        return None
    shown = dict.fromkeys(each.runs[0].name for each in board.baselines if each.runs)
    tables = tuple(
        _difference_table(board, rival, [each for each in differences if each.against == rival]) for rival in shown
    )
    lead = (
        "The same queries, the same draws of test images, one run minus the other, in points.",
        declared(board),
        _by_luck(board, sum(len(row) - 1 for table in tables for row in table.rows)),
        "Intervals speak of other test images, not of other seeds or other training pairs. The sentences on top count "
        "a run as better only if it is ahead by twice the standard error over seeds as well. The best of many runs "
        "was picked on these very images, which flatters it a little. Of several closed forms the best here is shown; "
        "all of them, and all measures: differences.csv.",
    )
    return Section(id="differences", title="Significance", open=True, lead=tuple(filter(None, lead)), tables=tables)


def _by_luck(board: Leaderboard, comparisons: int) -> str:
    """Say how many differences would look real if there were none."""
    if comparisons < FEW:
        return ""
    lucky = comparisons * (1 - board.confidence) / board.tests
    return (
        "The correction counts baselines, neither runs nor measures: of the "
        f"{comparisons} differences in these tables about {lucky:.1f} would be bold if all runs were equally good."
    )


def _difference_table(board: Leaderboard, against: str, found: list[Difference]) -> Table:
    headings = {each.name: measure_name(each) for each in board.measures if each.k == board.k}
    headings = {MEAN: f"mean R@{board.k}"} | headings
    rows: dict[str, list[Cell]] = {}
    for each in found:
        if each.measure in headings:
            sub = f"{signed(each.low)} to {signed(each.high)}, p {each.p_value:.3f}"
            cell = Cell(text=signed(each.value), sub=sub, value=each.value, best=each.real)
            rows.setdefault(each.run, [Cell(text=each.run)]).append(cell)
    return Table(
        caption=f"Minus {against}, in points. Bold: the interval leaves zero out. p: two-sided, from the same draws; "
        "both are corrected for the number of baselines.",
        head=(f"run − {against}", *headings.values()),
        rows=tuple(map(tuple, rows.values())),
    )


def seen_section(found: Findings) -> Section | None:
    """Return the numbers with and without what training has seen; none where nothing was found."""
    pairs, duplicates = found.pairs, found.duplicates
    if not duplicates.twins:
        return None
    images, captions = pairs.image.samples.split.count(pairs.split), len(pairs.pairs.caption_rows)
    lead = (
        f"{duplicates.count(NEAR):,} of {count(images, 'test image')} have a training image with a cosine above "
        f"{found.config.duplicate_cosine:g} in the last layer of the frozen image encoder, centred on the training "
        f"mean. {duplicates.count(SAME):,} of {count(captions, 'test caption')} stand in the training split word for "
        "word (but for case, blanks and marks at the end).",
        "Such queries may be remembered, not understood. Below they are left out as queries; the galleries stay whole, "
        "so both numbers are about the same task. All of them: duplicates.csv.",
    )
    kinds = ((NEAR, "near-duplicate images"), (SAME, "repeated captions"))
    return Section(
        id="seen",
        title="Train–test overlap",
        lead=lead,
        tables=tuple(table for kind, what in kinds for table in _without_table(found.board, duplicates, kind, what)),
        groups=_closest([twin for twin in duplicates.twins if twin.kind == NEAR and not twin.set], found.pictures),
        folded=tuple(_listed(duplicates)),
    )


def _without_table(board: Leaderboard, found: Duplicates, kind: str, what: str) -> Iterator[Table]:
    touched: dict[Measure, frozenset[str]] = {
        each: ids
        for each in board.measures
        if (ids := found.touched[kind].get(each.direction))
        and each.k == (1 if each.macro or each.name.endswith("acc1") else board.k)
    }
    if not touched:
        return

    def cells(run: RunResult) -> Iterator[Cell]:
        for measure, ids in touched.items():
            value, whole = without(measure, run.answers[measure.direction].queries, ids), run.mean(measure.name)
            if value is None:
                yield Cell(text="none left", sub=f"with {percent(whole)}")
            else:
                yield Cell.percent(value, f"with {percent(whole)}, {signed(value - whole)}")

    asked = {each: board.lead.answers[each.direction].queries.ids for each in touched}
    n = (
        f"{sum(name not in ids for name in asked[each]):,} of {len(asked[each]):,} {measure_name(each)}"
        for each, ids in touched.items()
    )
    caption = (
        f"Percent without {what}; below it the number with them, and what leaving them out changes. n = {', '.join(n)}."
    )
    yield Table.of_runs(board.runs, ("run", *map(measure_name, touched)), cells, caption, narrow=True)


def _closest(twins: Sequence[Twin], pictures: Pictures) -> tuple[ExampleGroup, ...]:
    if not twins or not pictures.available:
        return ()
    examples = tuple(
        Example(
            query=twin.test,
            note=f"cosine {twin.cosine:.3f} to the training image {twin.train}",
            image=pictures.thumbnail(twin.test_content),
            answers=(Thumb(image=pictures.thumbnail(twin.train_content), note="in training"),),
        )
        for twin in twins[:SHOWN]
    )
    lead = f"Test image on the left, training image beside it; {len(examples)} of {len(twins):,}."
    return (ExampleGroup(title="The closest pairs of images", lead=lead, examples=examples),)


def _listed(found: Duplicates) -> Iterator[tuple[str, str]]:
    for kind, title in ((NEAR, "Near-duplicate images"), (SAME, "Captions that stand in training")):
        twins = [twin for twin in found.twins if twin.kind == kind]
        lines = [_line(twin) for twin in twins[:LISTED]]
        lines += [f"… and {len(twins) - LISTED:,} more in duplicates.csv"] if len(twins) > LISTED else []
        if lines:
            yield f"{title}: {len(twins):,}", "\n".join(lines)


def _line(twin: Twin) -> str:
    if twin.kind == SAME:
        return f"{twin.test} = {twin.train}: {' '.join(twin.test_content.split())}"
    name = f"{twin.set}: " if twin.set else ""
    return f"{name}{twin.test} ≈ {twin.train}, cosine {twin.cosine:.3f}"


def curves_section(found: Findings) -> Section:
    """Return recall over k in both directions."""
    board, captions = found.board, found.pairs.captions_of
    pictures = []
    for direction in RETRIEVAL:
        name, largest = direction_name(direction), int(captions.sum() if direction == TEXT_RETRIEVAL else len(captions))
        series = []
        for run in reversed(board.runs):
            curve = run.answers[direction].recall_curve(min(CURVE[-1], largest))
            series.append(Series(name=run.name, role=board.role(run), x=[*curve], y=[*curve.values()]))
        ks = series[0].x
        by_chance = [chance_level(Measure(name="", direction=direction, k=int(k)), captions) for k in ks]
        random = Series(name="chance", role="other", x=ks, y=by_chance)
        caption = f"{name}, {largest:,} in the gallery; mean over seeds."
        pictures.append(Picture(svg=recall_curves(series, random, f"{name} R@k"), caption=caption))
    tables = (_ranking_table(board), *_csls_table(board))
    return Section(id="curves", title="Recall at k", pictures=tuple(pictures), tables=tables)


def _csls_table(board: Leaderboard) -> Iterator[Table]:
    """Return recall under CSLS where it was asked for."""
    measures = [measure for measure in board.measures if board.lead.under_csls(measure) is not None]

    def cells(run: RunResult) -> Iterator[Cell]:
        for measure in measures:
            value, bare = run.under_csls(measure) or 0.0, run.mean(measure.name)
            yield Cell.percent(value, f"without {percent(bare)}, {signed(value - bare)}")

    caption = (
        "Percent with CSLS, which takes off how near an image or a caption is to everybody: its nearest neighbours are "
        "looked for among training captions and images, never among the test queries."
    )
    if measures:
        yield Table.of_runs(board.runs, ("run, CSLS", *map(measure_name, measures)), cells, caption)


def _ranking_table(board: Leaderboard) -> Table:
    titles = {"mean_rank": "mean rank", "median_rank": "median rank", "mAP": "mAP, %"}

    def cells(run: RunResult) -> Iterator[Cell]:
        for direction in RETRIEVAL:
            for name, value in run.answers[direction].ranking().items():
                yield Cell(text=percent(value) if name == "mAP" else f"{value:,.1f}", value=value)

    caption = (
        "Means over seeds. Rank of the best right answer, 1 is best. mAP: over all captions of an image; with one "
        "right answer it is the mean reciprocal rank."
    )
    heads = (f"{direction_name(each)} {title}" for each in RETRIEVAL for title in titles.values())
    return Table.of_runs(board.runs, ("run", *heads), cells, caption)
