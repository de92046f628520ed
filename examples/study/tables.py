"""The tables of the study's page as Markdown: numbers as percent, signed differences with their intervals."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from examples.study.claims import Tested
from examples.study.config import StudyConfig
from examples.study.statistics import Effect, Group, Kind, best_closed, closed_rows, difference
from pipeline.errors import UserError

Cell = Callable[[Group], str]
SCALARS = ("trustworthiness", "continuity", "gap", "rank")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [_line(header), "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *(_line(row) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escape(cell) for cell in cells)} |"


def escape(text: str) -> str:
    """Return text that neither ends a cell nor becomes markup that was not meant."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def percent(values: NDArray[np.float64], decimals: int = 1) -> str:
    """Return fractions over seeds as percent, mean ± sample standard deviation."""
    mean = f"{100 * float(values.mean()):.{decimals}f}"
    return f"{mean} ± {100 * float(values.std(ddof=1)):.{decimals}f}" if len(values) > 1 else mean


def plain(values: NDArray[np.float64], decimals: int = 3) -> str:
    """Return numbers over seeds as they are, mean ± sample standard deviation."""
    mean = f"{float(values.mean()):.{decimals}f}"
    return f"{mean} ± {float(values.std(ddof=1)):.{decimals}f}" if len(values) > 1 else mean


def signed(effect: Effect, scale: float = 100.0, decimals: int = 1) -> str:
    """Return a difference with its interval, in points: `+0.3 [−0.5, +1.1]`, bold where the interval leaves out 0.

    Where rounding would turn a bound of such an interval into 0, more decimals are shown.
    """
    bounds = (scale * effect.low, scale * effect.high)
    while effect.clear and decimals < 4 and any(round(bound, decimals) == 0 for bound in bounds):
        decimals += 1
    value, low, high = (_number(scale * number, decimals) for number in effect[:3])
    text = f"{value} [{low}, {high}]" if effect.high - effect.low < float("inf") else value
    return f"**{text}**" if effect.clear else text


def _number(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def count(value: int | None) -> str:
    """Return a number of pairs or captions; None is all."""
    return "all" if value is None else f"{value:,}"


def shown(metric: str) -> Cell:
    """Return what prints a metric of a group: percent, or the plain number where it is no share."""
    write = plain if any(word in metric for word in SCALARS) else percent
    decimals = 3 if write is plain and "rank" not in metric else 1

    def cell(group: Group) -> str:
        try:
            return write(group.values(metric), decimals)
        except UserError:
            return "–"

    return cell


def grid_table(groups: Sequence[Group], across: str, cell: Cell, *, name: str = "method") -> str:
    """Return rows of methods and a column for each value of a field of `Kind`, such as `pairs`."""
    values = list(dict.fromkeys(getattr(group.kind, across) for group in groups))
    rows = list(dict.fromkeys(group.kind.row for group in groups))
    held = {(group.kind.row, getattr(group.kind, across)): cell(group) for group in groups}
    header = [name, *(_heading(across, value) for value in values)]
    return table(header, ([row, *(held.get((row, value), "–") for value in values)] for row in rows))


def _heading(across: str, value: object) -> str:
    if across in ("pairs", "captions"):
        return ("n = " if across == "pairs" else "") + count(value if isinstance(value, int) else None)
    return f"{100 * value:g} %" if isinstance(value, float) else str(value)


def metric_table(groups: Sequence[Group], metrics: dict[str, str]) -> str:
    """Return rows of methods and a column for each metric (column's name → metric)."""
    rows = ([group.kind.row, *(shown(metric)(group) for metric in metrics.values())] for group in groups)
    return table(["method", *metrics], rows)


def differences_tables(config: StudyConfig, groups: Sequence[Group], measure: str) -> Iterator[str]:
    """Yield two tables: each row's difference to the baseline, and to the best closed form, by number of pairs."""
    closed = closed_rows(config)
    rivals: dict[str, Callable[[Group], Group | None]] = {
        f"− {config.baseline}": lambda group: _row_of(groups, group, config.baseline),
        "− best closed form": lambda group: best_closed(groups, group.kind, closed),
    }
    for name, rival_of in rivals.items():
        found = {group.kind: rival for group in groups if (rival := rival_of(group)) is not None}
        if found:
            yield grid_table(groups, "pairs", partial(_against, found, measure), name=name)


def _row_of(groups: Sequence[Group], like: Group, row: str) -> Group | None:
    return next((group for group in groups if group.kind == like.kind._replace(row=row)), None)


def _against(rivals: Mapping[Kind, Group], measure: str, group: Group) -> str:
    rival = rivals.get(group.kind)
    if rival is None or group.kind == rival.kind:
        return "–"
    return signed(difference([(group, rival)], measure))


def best_closed_sentence(config: StudyConfig, groups: Sequence[Group]) -> str:
    """Say which closed form is the best one where, on validation pairs."""
    named: dict[str, list[str]] = {}
    for n in dict.fromkeys(group.kind.pairs for group in groups):
        kind = next(group.kind for group in groups if group.kind.pairs == n)
        found = best_closed(groups, kind, closed_rows(config))
        if found is not None:
            named.setdefault(found.kind.row, []).append(count(n))
    parts = [f"{row} (n = {', '.join(where)})" for row, where in named.items()]
    return f"Best closed form by validation: {'; '.join(parts) or 'none'}."


def claims_table(tested: Sequence[Tested]) -> str:
    """Return every claim with its effect and the verdict."""
    rows = []
    for each in tested:
        claim = each.claim
        against = f"{claim.better} − {claim.than}"
        if claim.layers:
            against = f"{claim.better}: {' − '.join(claim.layers)}"
        rows.append(
            [
                f"{claim.claim} ({claim.source})",
                f"{against}; {claim.measure}; {claim.grid}" + (" (less is better)" if claim.lower else ""),
                _effect(each.effect, claim.measure),
                claim.published or "–",
                f"{each.effect.ahead} of {each.effect.cells}" if each.effect else "–",
                each.verdict,
            ]
        )
    return table(["claim", "measured as", "effect, points", "published", "better in", "verdict"], rows)


def _effect(effect: Effect | None, measure: str) -> str:
    if effect is None:
        return "–"
    small = any(word in measure for word in SCALARS)
    return signed(effect, decimals=2 if small else 1)


def layers_chosen_table(groups: Sequence[Group]) -> str:
    """Return which layers were chosen for which methods, for each pair of encoders and number of pairs."""
    found: dict[tuple[str, ...], dict[tuple[str, str], list[str]]] = {}
    for group in groups:
        kind, layers = group.kind, next(iter(group.results.values()))["layers"]
        key = (kind.encoders, count(kind.pairs), count(kind.captions), kind.layers)
        chosen = " + ".join(layers["image"]), " + ".join(layers["text"])
        found.setdefault(key, {}).setdefault(chosen, []).append(kind.row)
    rows = [
        [*key, *chosen, "all" if len(choices) == 1 else ", ".join(names)]
        for key, choices in found.items()
        for chosen, names in choices.items()
    ]
    return table(["encoders", "n", "captions", "asked", "image layers", "text layers", "methods"], rows)


def cost_table(groups: Sequence[Group]) -> str:
    """Return core-seconds of a run (projectors alone, one thread) for each method and number of pairs."""

    def seconds(group: Group) -> str:
        spent = [each["seconds"]["fit_cpu"] for each in group.results.values()]
        return f"{sum(spent) / len(spent):.1f}"

    return grid_table(groups, "pairs", seconds)
