"""The chapters on the numbers: all runs side by side, paired differences, recall over k."""

from pipeline.evaluate.figures import Interval, Role, Series, forest, recall_curves
from pipeline.evaluate.leaderboard import Difference, Leaderboard, headline_names
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure
from pipeline.evaluate.report.page import (
    Cell,
    Picture,
    Section,
    Table,
    between,
    direction_name,
    measure_name,
    percent,
    plus_minus,
    signed,
)
from pipeline.evaluate.single import RunResult
from pipeline.evaluate.tables import csls_value, ranking, recall_curve
from pipeline.words import listing

CURVE_LIMIT = 100
FEW = 20
"""Comparisons below which luck is not worth a sentence."""


def role_of(run: RunResult, summary: Leaderboard) -> Role:
    """Return the part that a run plays, which gives it its colour."""
    if run is summary.lead:
        return "lead"
    if run is summary.baseline:
        return "rival"
    return "closed" if run is runner_up(summary) else "other"


def runner_up(summary: Leaderboard) -> RunResult | None:
    """Return the best of the other kind than the best run: without training where that is trained, and vice versa."""
    return summary.best_closed if summary.lead.trained else summary.best_trained


def forest_picture(summary: Leaderboard) -> Picture | None:
    """Return the figure of the first screen; none for a single run."""
    if len(summary.runs) < 2:
        return None
    rows = []
    for run in summary.runs:
        value, low, high = summary.headline(run)
        rows.append(Interval(name=run.name, role=role_of(run, summary), value=value, low=low, high=high))
    chance = sum(summary.chance[name] for name in headline_names(summary.k)) / 2
    label = f"R@{summary.k}, mean of both directions"
    meaning = {
        "lead": "blue is the best run",
        "rival": "orange the plain contrastive baseline",
        "closed": f"green the best {'without training' if summary.lead.trained else 'of the trained'}",
    }
    shown = [text for part, text in meaning.items() if part in {row.role for row in rows}]
    spread = f"{100 * summary.confidence:.0f} % interval over test images"
    caption = f"Dot: mean over seeds. Line: {spread}, {_ground(summary)}. Of the colours, {listing(shown)}."
    return Picture(svg=forest(rows, chance, label), caption=caption)


def _ground(summary: Leaderboard) -> str:
    """Return how many queries the numbers of each direction stand on."""
    order = list(dict.fromkeys(measure.direction for measure in summary.measures))
    return "n = " + ", ".join(f"{len(summary.lead.queries[name].ids):,} {direction_name(name)}" for name in order)


def results_section(summary: Leaderboard) -> Section:
    """Return the table of all runs and all measures."""
    head = ("run", *(measure_name(measure) for measure in summary.measures))
    best = {measure.name: max(run.mean(measure.name) for run in summary.runs) for measure in summary.measures}
    rows = tuple(
        (
            Cell(text=run.name, sub="" if run.trained else "no training"),
            *(_cell(summary, run, measure, best[measure.name]) for measure in summary.measures),
        )
        for run in summary.runs
    )
    foot = ("chance", *(percent(summary.chance[measure.name]) for measure in summary.measures))
    caption = (
        f"Percent: mean ± s.d. over seeds, below it the {100 * summary.confidence:.0f} % interval over test images. "
        f"Queries: {_ground(summary)}. Bold: the highest, which need not be the surely best. Click a heading to sort."
    )
    table = Table(caption=caption, head=head, rows=rows, foot=foot)
    return Section(id="results", title="Side by side", tables=(table,))


def _cell(summary: Leaderboard, run: RunResult, measure: Measure, best: float) -> Cell:
    value = run.mean(measure.name)
    text = f"{percent(value)} {plus_minus(run.deviation(measure.name))}".strip()
    low, high = summary.interval(run, measure.name)
    return Cell(text=text, sub=between(low, high), value=value, best=len(summary.runs) > 1 and value == best)


def differences_section(summary: Leaderboard) -> Section | None:
    """Return paired differences against the baseline and the best closed form; none where there is no rival."""
    found = summary.differences()
    if not found:
        return None
    rivals = list(dict.fromkeys(each.against for each in found))
    tables = tuple(_difference_table(summary, [each for each in found if each.against == rival]) for rival in rivals)
    lead = (
        "The same queries, the same draws of test images, one run minus the other, in points.",
        *_not_better(summary),
        *_by_luck(summary, tables),
        "Intervals speak of other test images, not of other seeds or other training pairs. The sentences above and on "
        "top count a run as better only if it is ahead with all pairs of runs looked at, and by twice the standard "
        "error over seeds. The best of many runs was picked on these very images, which flatters it a little. All "
        "measures: differences.csv.",
    )
    return Section(id="differences", title="Is it real?", lead=lead, tables=tables)


def _by_luck(summary: Leaderboard, tables: tuple[Table, ...]) -> tuple[str, ...]:
    """Say how many differences would look real if there were none."""
    cells = sum(len(row) - 1 for table in tables for row in table.rows)
    chance = f"{cells * (1 - summary.confidence):.0f}"
    if cells < FEW:
        return ()
    return (
        f"In the tables each interval and p stands alone: of their {cells} comparisons about {chance} would be bold if "
        "all runs were equally good.",
    )


def _not_better(summary: Leaderboard) -> tuple[str, ...]:
    closed = summary.best_closed
    if closed is None:
        return ()
    trained = [run for run in summary.runs if run.trained]
    behind = [run.name for run in trained if not summary.settled(run, closed)]
    if not behind:
        return ()
    verb = "does" if len(behind) == 1 else "do"
    return (f"{listing(behind)} {verb} not beat the closed form {closed.name} on the mean of both directions.",)


def _difference_table(summary: Leaderboard, found: list[Difference]) -> Table:
    against = found[0].against
    shown = {"mean_recall"} | {measure.name for measure in summary.measures if measure.k == summary.k}
    found = [each for each in found if each.measure in shown]
    names = [each.measure for each in found if each.run == found[0].run]
    headings = {"mean_recall": f"mean R@{summary.k}"} | {m.name: measure_name(m) for m in summary.measures}
    by_run: dict[str, list[Difference]] = {}
    for each in found:
        by_run.setdefault(each.run, []).append(each)
    rows = tuple(
        (Cell(text=run), *(_difference_cell(each) for each in differences)) for run, differences in by_run.items()
    )
    caption = f"Minus {against}, in points. Bold: the interval leaves zero out. p: two-sided, from the same draws."
    return Table(caption=caption, head=(f"run − {against}", *(headings[name] for name in names)), rows=rows)


def _difference_cell(each: Difference) -> Cell:
    sub = f"{signed(each.low)} to {signed(each.high)}, p {each.p_value:.3f}"
    return Cell(text=signed(each.value), sub=sub, value=each.value, best=each.real)


def curves_section(summary: Leaderboard, chance: dict[str, list[float]], largest: dict[str, int]) -> Section:
    """Return recall over k in both directions.

    Args:
        summary: The runs.
        chance: Direction → chance at each k of the curve.
        largest: Direction → size of its gallery.
    """
    pictures = []
    for direction in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL):
        limit = min(CURVE_LIMIT, largest[direction])
        series = [_curve(run, direction, limit, role_of(run, summary)) for run in reversed(summary.runs)]
        random = Series(name="chance", role="other", x=series[0].x, y=chance[direction][: len(series[0].x)])
        caption = f"{direction_name(direction)}, {largest[direction]:,} in the gallery; mean over seeds."
        pictures.append(Picture(svg=recall_curves(series, random, f"{direction_name(direction)} R@k"), caption=caption))
    return Section(
        id="curves",
        title="Further down the list",
        pictures=tuple(pictures),
        tables=(_ranking_table(summary), *_csls_table(summary)),
    )


def _csls_table(summary: Leaderboard) -> tuple[Table, ...]:
    """Return recall under CSLS where it was asked for."""
    measures = [measure for measure in summary.measures if measure.direction in summary.lead.csls]
    if not measures:
        return ()
    rows = []
    for run in summary.runs:
        values = [(csls_value(run, measure), run.mean(measure.name)) for measure in measures]
        cells = [
            Cell(text=percent(value), value=value, sub=f"without {percent(plain)}, {signed(value - plain)}")
            for value, plain in values
        ]
        rows.append((Cell(text=run.name), *cells))
    caption = (
        "Percent with CSLS, which takes off how near an image or a caption is to everybody: its nearest neighbours are "
        "looked for among training captions and images, never among the test queries."
    )
    return (Table(caption=caption, head=("run, CSLS", *map(measure_name, measures)), rows=tuple(rows)),)


def _ranking_table(summary: Leaderboard) -> Table:
    directions = (TEXT_RETRIEVAL, IMAGE_RETRIEVAL)
    titles = {"mean_rank": "mean rank", "median_rank": "median rank", "mAP": "mAP, %"}
    head = ("run", *(f"{direction_name(direction)} {title}" for direction in directions for title in titles.values()))
    rows = []
    for run in summary.runs:
        cells = [
            Cell(text=percent(value) if name == "mAP" else f"{value:,.1f}", value=value)
            for direction in directions
            for name, value in ranking(run, direction).items()
        ]
        rows.append((Cell(text=run.name), *cells))
    caption = (
        "Means over seeds. Rank of the best right answer, 1 is best. mAP: over all captions of an image; with one "
        "right answer it is the mean reciprocal rank."
    )
    return Table(caption=caption, head=head, rows=tuple(rows))


def _curve(run: RunResult, direction: str, limit: int, role: Role) -> Series:
    points = recall_curve(run, direction, limit)
    return Series(name=run.name, role=role, x=[k for k, _ in points], y=[value for _, value in points])
