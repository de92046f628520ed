"""The first screen: which run won, by how much, and whether that is real."""

from collections.abc import Sequence

from pipeline.evaluate.leaderboard import Leaderboard, headline_names
from pipeline.evaluate.queries import Measure
from pipeline.evaluate.report.page import Tile, between, measure_name, percent, plus_minus, signed
from pipeline.evaluate.single import RunResult
from pipeline.words import count, listing

NAMED = 3
"""How many runs are named; of more the number is said."""


def verdict(summary: Leaderboard) -> str:
    """Return the sentence that the report opens with."""
    lead = summary.lead
    by_image, by_text = (percent(lead.mean(name)) for name in headline_names(summary.k))
    place = "first" if summary.k == 1 else f"among the first {summary.k}"
    found = (
        f"a right caption {place} for {by_image} % of images and the right image {place} for {by_text} % of captions"
    )
    if len(summary.runs) == 1:
        return f"{lead.name} puts {found}."
    second = summary.runs[1]
    ahead = f"{percent(summary.gap(lead, second).value)} points ahead of {second.name}"
    rivals = summary.rivals()
    if not rivals:
        return f"{lead.name} wins on the mean of both directions, {ahead}: it puts {found}."
    return f"No clear winner: {lead.name} is {ahead}, but {_told(rivals, summary)}. {lead.name} puts {found}."


def reasons(summary: Leaderboard, images: int, captions: int) -> tuple[str, ...]:
    """Return the sentences under the verdict: how sure, against what, and against which baselines."""
    found = [_how_sure(summary, images, captions), _by_measure(summary), *_baselines(summary)]
    return tuple(sentence for sentence in found if sentence)


def _how_sure(summary: Leaderboard, images: int, captions: int) -> str:
    ground = f"{count(images, 'test image')} with {count(captions, 'caption')}"
    value, low, high = summary.headline(summary.lead)
    level = f"{100 * summary.confidence:.0f} %"
    if len(summary.runs) == 1:
        chance = sum(summary.chance[name] for name in headline_names(summary.k)) / 2
        factor = f"{value / chance:,.0f} times chance" if chance else "chance is nil"
        return f"On {ground}: the mean of both is {percent(value)} ({level} interval {between(low, high)}), {factor}."
    gap = summary.gap(summary.runs[0], summary.runs[1])
    sure = f"{level} interval {signed(gap.low)} to {signed(gap.high)}"
    pairs = len(summary.runs) * (len(summary.runs) - 1) // 2
    if pairs > 1:
        margin = summary.margin(summary.runs[0], summary.runs[1])
        sure += f" alone, {signed(gap.value - margin)} to {signed(gap.value + margin)} among all {pairs} pairs of runs"
    lead = f"{signed(gap.value)} points on the mean of both directions, {sure}"
    return f"The lead: {lead}, paired query by query on {ground}.{_over_seeds(summary)}"


def _by_measure(summary: Leaderboard) -> str:
    """Say who is best in each direction and in zero-shot: often not one and the same."""
    if len(summary.runs) < 2:
        return ""
    names = (*headline_names(summary.k), *(each.name for each in summary.measures if each.name.endswith("acc1")))
    headings = {measure.name: measure_name(measure) for measure in summary.measures}
    parts = []
    for name in names:
        best = summary.ranking(name)[0]
        rivals = summary.rivals(name)
        rest = _told(rivals, summary) if rivals else "ahead of every other run"
        parts.append(f"{headings[name]} {best.name} with {percent(best.mean(name))} % ({rest})")
    return f"The best in each: {'; '.join(parts)}."


def _told(rivals: Sequence[RunResult], summary: Leaderboard) -> str:
    """Say which runs cannot be told from the best one."""
    others = len(summary.runs) - 1
    if len(rivals) <= NAMED:
        return f"{listing([run.name for run in rivals])} cannot be told from it"
    number = f"none of the other {others}" if len(rivals) == others else f"{len(rivals)} of the other {others}"
    return f"{number} {'can' if len(rivals) == others else 'cannot'} be told from it"


def _over_seeds(summary: Leaderboard) -> str:
    lead, second = summary.runs[:2]
    error = summary.seed_error(lead, second)
    if not error:
        return ""
    return f" Over seeds its standard error is {percent(error)} points."


def _baselines(summary: Leaderboard) -> list[str]:
    closed, baseline = summary.best_closed, summary.baseline
    trained = [run for run in summary.runs if run.trained]
    found = []
    if closed is not None and trained:
        found.append(_against_closed(trained, closed, summary))
    if baseline is not None:
        better = [run.name for run in trained if run is not baseline and summary.settled(run, baseline)]
        others = [run for run in trained if run is not baseline]
        if others:
            beaten = f"{listing(better)} {'beats' if len(better) == 1 else 'beat'} it" if better else "none beats it"
            found.append(f"Of the other trained losses, against plain {baseline.name}: {beaten} beyond the noise.")
    return found


def _against_closed(trained: list[RunResult], closed: RunResult, summary: Leaderboard) -> str:
    better = [run.name for run in trained if summary.settled(run, closed)]
    worse = [run.name for run in trained if summary.settled(closed, run)]
    even = [run.name for run in trained if run.name not in (*better, *worse)]
    if not better:
        return f"No trained loss beats {closed.name}, which needs no training{_rest(even, worse)}."
    verb = "beats" if len(better) == 1 else "beat"
    return f"{listing(better)} {verb} {closed.name}, the best closed form{_rest(even, worse)}."


def _rest(even: list[str], worse: list[str]) -> str:
    parts = []
    if even:
        parts.append(f"{listing(even)} cannot be told from it")
    if worse:
        parts.append(f"{listing(worse)} {'stays' if len(worse) == 1 else 'stay'} below")
    return f"; {'; '.join(parts)}" if parts else ""


def tiles(summary: Leaderboard) -> tuple[Tile, ...]:
    """Return the large numbers of the best run."""
    names = [*headline_names(summary.k)]
    chosen = [measure for name in names for measure in summary.measures if measure.name == name]
    chosen += [measure for measure in summary.measures if measure.name.endswith("acc1")][:2]
    return tuple(_tile(summary, measure) for measure in chosen)


def _tile(summary: Leaderboard, measure: Measure) -> Tile:
    run = summary.lead
    low, high = summary.interval(run, measure.name)
    return Tile(
        label=measure_name(measure) if len(summary.runs) == 1 else f"{run.name}, {measure_name(measure)}",
        value=f"{percent(run.mean(measure.name))} %",
        spread=plus_minus(run.deviation(measure.name)),
        note=f"{between(low, high)}, chance {percent(summary.chance[measure.name])}",
    )
