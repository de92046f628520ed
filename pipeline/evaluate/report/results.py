"""The first screen, which run won, by how much, and whether that is real; and the chapters on the numbers."""

from collections.abc import Iterator, Sequence

from pipeline.evaluate.figures import Interval, Role, Series, forest, recall_curves
from pipeline.evaluate.leaderboard import MEAN, Difference, Leaderboard, headline_names
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure
from pipeline.evaluate.report.page import (
    Cell,
    Picture,
    Section,
    Table,
    Tile,
    between,
    direction_name,
    measure_name,
    percent,
    plus_minus,
    signed,
)
from pipeline.evaluate.single import RunResult
from pipeline.evaluate.tables import csls_value, ranking, recall_curve
from pipeline.words import count, listing

NAMED = 3
"""How many runs are named; of more the number is said."""
CURVE_LIMIT = 100
FEW = 20
"""Comparisons below which luck is not worth a sentence."""


def verdict(board: Leaderboard) -> str:
    """Return the sentence that the report opens with."""
    lead = board.lead
    by_image, by_text = (percent(lead.mean(name)) for name in headline_names(board.k))
    place = "first" if board.k == 1 else f"among the first {board.k}"
    found = (
        f"a right caption {place} for {by_image} % of images and the right image {place} for {by_text} % of captions"
    )
    if len(board.runs) == 1:
        return f"{lead.name} puts {found}."
    second = board.runs[1]
    ahead = f"{percent(board.gap(lead, second).value)} points ahead of {second.name}"
    rivals = board.rivals()
    if not rivals:
        return f"{lead.name} wins on the mean of both directions, {ahead}: it puts {found}."
    return f"No clear winner: {lead.name} is {ahead}, but {_not_beaten(rivals, board)}. {lead.name} puts {found}."


def reasons(board: Leaderboard, images: int, captions: int) -> tuple[str, ...]:
    """Return the sentences under the verdict: how sure, against what, and against which baselines."""
    found = [_how_sure(board, images, captions), _by_measure(board), *_baselines(board)]
    return tuple(sentence for sentence in found if sentence)


def _how_sure(board: Leaderboard, images: int, captions: int) -> str:
    ground = f"{count(images, 'test image')} with {count(captions, 'caption')}"
    value, (low, high) = board.value(board.lead), board.interval(board.lead)
    level = f"{100 * board.confidence:.0f} %"
    if len(board.runs) == 1:
        chance = sum(board.chance[name] for name in headline_names(board.k)) / 2
        factor = f"{value / chance:,.0f} times chance" if chance else "chance is nil"
        return f"On {ground}: the mean of both is {percent(value)} ({level} interval {between(low, high)}), {factor}."
    gap = board.gap(board.runs[0], board.runs[1])
    sure = f"{level} interval {signed(gap.low)} to {signed(gap.high)}"
    pairs = len(board.runs) * (len(board.runs) - 1) // 2
    if pairs > 1:
        margin = board.margin(board.runs[0], board.runs[1])
        sure += f" alone, {signed(gap.value - margin)} to {signed(gap.value + margin)} among all {pairs} pairs of runs"
    lead = f"{signed(gap.value)} points on the mean of both directions, {sure}"
    error = board.seed_error(board.runs[0], board.runs[1])
    over_seeds = f" Over seeds its standard error is {percent(error)} points." if error else ""
    return f"The lead: {lead}, paired query by query on {ground}.{over_seeds}"


def _by_measure(board: Leaderboard) -> str:
    """Say who is best in each direction and in zero-shot: often not one and the same."""
    if len(board.runs) < 2:
        return ""
    names = headline_names(board.k)
    parts = []
    for measure in board.measures:
        if measure.name in names or measure.name.endswith("acc1"):
            best, rivals = board.ranking(measure.name)[0], board.rivals(measure.name)
            rest = _not_beaten(rivals, board) if rivals else "ahead of every other run"
            parts.append(f"{measure_name(measure)} {best.name} with {percent(best.mean(measure.name))} % ({rest})")
    return f"The best in each: {'; '.join(parts)}."


def _not_beaten(rivals: Sequence[RunResult], board: Leaderboard) -> str:
    """Say over which runs the best one's lead is not significant."""
    others = len(board.runs) - 1
    if len(rivals) <= NAMED:
        return f"its lead over {listing([run.name for run in rivals])} is not significant"
    if len(rivals) == others:
        return f"its lead over none of the other {others} is significant"
    return f"its lead over {len(rivals)} of the other {others} is not significant"


def _baselines(board: Leaderboard) -> Iterator[str]:
    closed, baseline = board.best_closed, board.baseline
    trained = [run for run in board.runs if run.trained]
    if closed is not None and trained:
        yield _against_closed(trained, closed, board)
    others = [run for run in trained if run is not baseline]
    if baseline is not None and others:
        better = [run.name for run in others if board.settled(run, baseline)]
        beaten = f"{listing(better)} {'beats' if len(better) == 1 else 'beat'} it" if better else "none beats it"
        yield f"Of the other trained losses, against plain {baseline.name}: {beaten} significantly."


def _against_closed(trained: list[RunResult], closed: RunResult, board: Leaderboard) -> str:
    better = [run.name for run in trained if board.settled(run, closed)]
    worse = [run.name for run in trained if board.settled(closed, run)]
    even = [run.name for run in trained if run.name not in (*better, *worse)]
    rest = [f"the difference from {listing(even)} is not significant"] if even else []
    rest += [f"{listing(worse)} {'stays' if len(worse) == 1 else 'stay'} below"] if worse else []
    ending = f"; {'; '.join(rest)}." if rest else "."
    if not better:
        return f"No trained loss beats {closed.name}, which needs no training{ending}"
    return f"{listing(better)} {'beats' if len(better) == 1 else 'beat'} {closed.name}, the best closed form{ending}"


def tiles(board: Leaderboard) -> tuple[Tile, ...]:
    """Return the large numbers of the best run."""
    chosen = [measure for name in headline_names(board.k) for measure in board.measures if measure.name == name]
    chosen += [measure for measure in board.measures if measure.name.endswith("acc1")][:2]
    return tuple(_tile(board, measure) for measure in chosen)


def _tile(board: Leaderboard, measure: Measure) -> Tile:
    run = board.lead
    low, high = board.interval(run, measure.name)
    return Tile(
        label=measure_name(measure) if len(board.runs) == 1 else f"{run.name}, {measure_name(measure)}",
        value=f"{percent(run.mean(measure.name))} %",
        spread=plus_minus(run.deviation(measure.name)),
        note=f"{between(low, high)}, chance {percent(board.chance[measure.name])}",
    )


def forest_picture(board: Leaderboard) -> Picture | None:
    """Return the figure of the first screen; none for a single run."""
    if len(board.runs) < 2:
        return None
    rows = []
    for run in board.runs:
        value, (low, high) = board.value(run), board.interval(run)
        rows.append(Interval(name=run.name, role=role_of(run, board), value=value, low=low, high=high))
    chance = sum(board.chance[name] for name in headline_names(board.k)) / 2
    meaning = {
        "lead": "blue is the best run",
        "rival": "orange the plain contrastive baseline",
        "closed": f"green the best {'without training' if board.lead.trained else 'of the trained'}",
    }
    shown = [text for role, text in meaning.items() if role in {row.role for row in rows}]
    caption = (
        f"Dot: mean over seeds. Line: {100 * board.confidence:.0f} % interval over test images, {_ground(board)}. "
        f"Of the colours, {listing(shown)}."
    )
    return Picture(svg=forest(rows, chance, f"R@{board.k}, mean of both directions"), caption=caption)


def role_of(run: RunResult, board: Leaderboard) -> Role:
    """Return the role that a run plays, which gives it its colour."""
    if run is board.lead:
        return "lead"
    if run is board.baseline:
        return "rival"
    runner_up = board.best_closed if board.lead.trained else board.best_trained
    return "closed" if run is runner_up else "other"


def _ground(board: Leaderboard) -> str:
    """Return how many queries the numbers of each direction stand on."""
    order = dict.fromkeys(measure.direction for measure in board.measures)
    return "n = " + ", ".join(f"{len(board.lead.queries[name].ids):,} {direction_name(name)}" for name in order)


def results_section(board: Leaderboard) -> Section:
    """Return the table of all runs and all measures."""
    best = {each.name: max(run.mean(each.name) for run in board.runs) for each in board.measures}
    rows = tuple(
        (
            Cell(text=run.name, sub="" if run.trained else "no training"),
            *(_cell(board, run, each.name, best[each.name]) for each in board.measures),
        )
        for run in board.runs
    )
    caption = (
        f"Percent: mean ± s.d. over seeds, below it the {100 * board.confidence:.0f} % interval over test images. "
        f"Queries: {_ground(board)}. Bold: the highest, which need not be the surely best. Click a heading to sort."
    )
    table = Table(
        caption=caption,
        head=("run", *map(measure_name, board.measures)),
        rows=rows,
        foot=("chance", *(percent(board.chance[each.name]) for each in board.measures)),
    )
    return Section(id="results", title="Side by side", tables=(table,))


def _cell(board: Leaderboard, run: RunResult, measure: str, best: float) -> Cell:
    value = run.mean(measure)
    text = f"{percent(value)} {plus_minus(run.deviation(measure))}".strip()
    sub = between(*board.interval(run, measure))
    return Cell(text=text, sub=sub, value=value, best=len(board.runs) > 1 and value == best)


def differences_section(board: Leaderboard) -> Section | None:
    """Return paired differences against the baseline and the best closed form; none where there is no rival."""
    found = board.differences()
    if not found:
        return None
    rivals = dict.fromkeys(each.against for each in found)
    tables = tuple(
        _difference_table(board, rival, [each for each in found if each.against == rival]) for rival in rivals
    )
    lead = (
        "The same queries, the same draws of test images, one run minus the other, in points.",
        _not_better(board),
        _by_luck(board, sum(len(row) - 1 for table in tables for row in table.rows)),
        "Intervals speak of other test images, not of other seeds or other training pairs. The sentences above and on "
        "top count a run as better only if it is ahead with all pairs of runs looked at, and by twice the standard "
        "error over seeds. The best of many runs was picked on these very images, which flatters it a little. All "
        "measures: differences.csv.",
    )
    return Section(id="differences", title="Is it real?", lead=tuple(filter(None, lead)), tables=tables)


def _by_luck(board: Leaderboard, comparisons: int) -> str:
    """Say how many differences would look real if there were none."""
    if comparisons < FEW:
        return ""
    return (
        f"In the tables each interval and p stands alone: of their {comparisons} comparisons about "
        f"{comparisons * (1 - board.confidence):.0f} would be bold if all runs were equally good."
    )


def _not_better(board: Leaderboard) -> str:
    closed = board.best_closed
    behind = [run.name for run in board.runs if closed and run.trained and not board.settled(run, closed)]
    if closed is None or not behind:
        return ""
    verb = "does" if len(behind) == 1 else "do"
    return f"{listing(behind)} {verb} not beat the closed form {closed.name} on the mean of both directions."


def _difference_table(board: Leaderboard, against: str, found: list[Difference]) -> Table:
    headings = {MEAN: f"mean R@{board.k}"} | {
        each.name: measure_name(each) for each in board.measures if each.k == board.k
    }
    rows: dict[str, list[Cell]] = {}
    for each in found:
        if each.measure in headings:
            sub = f"{signed(each.low)} to {signed(each.high)}, p {each.p_value:.3f}"
            cell = Cell(text=signed(each.value), sub=sub, value=each.value, best=each.real)
            rows.setdefault(each.run, [Cell(text=each.run)]).append(cell)
    return Table(
        caption=f"Minus {against}, in points. Bold: the interval leaves zero out. p: two-sided, from the same draws.",
        head=(f"run − {against}", *headings.values()),
        rows=tuple(map(tuple, rows.values())),
    )


def curves_section(board: Leaderboard, chance: dict[str, list[float]], largest: dict[str, int]) -> Section:
    """Return recall over k in both directions.

    Args:
        board: The runs.
        chance: Direction → chance at each k of the curve.
        largest: Direction → size of its gallery.
    """
    pictures = []
    for direction in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL):
        series = []
        for run in reversed(board.runs):
            k, recall = zip(*recall_curve(run, direction, min(CURVE_LIMIT, largest[direction])), strict=True)
            series.append(Series(name=run.name, role=role_of(run, board), x=k, y=recall))
        random = Series(name="chance", role="other", x=series[0].x, y=chance[direction][: len(series[0].x)])
        caption = f"{direction_name(direction)}, {largest[direction]:,} in the gallery; mean over seeds."
        pictures.append(Picture(svg=recall_curves(series, random, f"{direction_name(direction)} R@k"), caption=caption))
    return Section(
        id="curves",
        title="Further down the list",
        pictures=tuple(pictures),
        tables=(_ranking_table(board), *_csls_table(board)),
    )


def _csls_table(board: Leaderboard) -> tuple[Table, ...]:
    """Return recall under CSLS where it was asked for."""
    measures = [measure for measure in board.measures if measure.direction in board.lead.csls]
    if not measures:
        return ()
    rows = []
    for run in board.runs:
        values = [(csls_value(run, measure), run.mean(measure.name)) for measure in measures]
        cells = (Cell.percent(with_, f"without {percent(bare)}, {signed(with_ - bare)}") for with_, bare in values)
        rows.append((Cell(text=run.name), *cells))
    caption = (
        "Percent with CSLS, which takes off how near an image or a caption is to everybody: its nearest neighbours are "
        "looked for among training captions and images, never among the test queries."
    )
    return (Table(caption=caption, head=("run, CSLS", *map(measure_name, measures)), rows=tuple(rows)),)


def _ranking_table(board: Leaderboard) -> Table:
    directions = (TEXT_RETRIEVAL, IMAGE_RETRIEVAL)
    titles = {"mean_rank": "mean rank", "median_rank": "median rank", "mAP": "mAP, %"}
    rows = []
    for run in board.runs:
        values = [pair for direction in directions for pair in ranking(run, direction).items()]
        cells = (Cell(text=percent(value) if name == "mAP" else f"{value:,.1f}", value=value) for name, value in values)
        rows.append((Cell(text=run.name), *cells))
    return Table(
        caption="Means over seeds. Rank of the best right answer, 1 is best. mAP: over all captions of an image; with "
        "one right answer it is the mean reciprocal rank.",
        head=("run", *(f"{direction_name(each)} {title}" for each in directions for title in titles.values())),
        rows=tuple(rows),
    )
