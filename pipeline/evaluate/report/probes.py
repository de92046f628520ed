"""The chapter on probes: what labels can be read off frozen and aligned image features."""

from collections.abc import Sequence

from pipeline.evaluate.probes import ALIGNED, CHOSEN, LAST, NEIGHBOURS, Probe
from pipeline.evaluate.report.page import Cell, Section, Table
from pipeline.evaluate.report.words import between, percent
from pipeline.evaluate.summary import Summary
from pipeline.words import listing

NAMED = 3
TITLES = {LAST: "last layer", CHOSEN: "chosen layers", ALIGNED: "aligned"}


def probes_section(summary: Summary, probes: Sequence[Probe]) -> Section | None:
    """Return the tables of probes; none where nothing was probed."""
    if not probes:
        return None
    lead = (
        "kNN and a linear classifier, trained on labels: they say what the image features hold, and what of it the "
        f"alignment kept. kNN: {NEIGHBOURS} nearest by cosine around the training mean, votes weighed by similarity. "
        "Linear: logistic regression on standardised features, C chosen on a fifth of the training rows. Aligned: the "
        "first seed.",
    )
    sets = dict.fromkeys(probe.set for probe in probes)
    tables = tuple(_table(name, [probe for probe in probes if probe.set == name], summary) for name in sets)
    return Section(id="probes", title="What the features hold", lead=lead, tables=tables)


def _table(name: str, probes: Sequence[Probe], summary: Summary) -> Table:
    by_features: dict[tuple[str, tuple[str, ...]], dict[str, Probe]] = {}
    for probe in probes:
        by_features.setdefault((probe.features, probe.runs), {})[probe.method] = probe
    best = {method: max(probe.acc1 for probe in probes if probe.method == method) for method in ("knn", "linear")}
    order = {run.name: place for place, run in enumerate(summary.runs)}
    ranked = sorted(by_features.items(), key=lambda item: (list(TITLES).index(item[0][0]), order[item[0][1][0]]))
    rows = tuple(_row(features, runs, found, best) for (features, runs), found in ranked)
    first = probes[0]
    caption = (
        f"{name or 'main data set'}: percent, below it the {100 * summary.confidence:.0f} % interval over test images. "
        f"{first.train_rows:,} training and {first.test_rows:,} test images; {first.split}."
    )
    head = ("features", "kNN acc@1", "kNN per-class", "linear acc@1", "linear per-class", "C")
    return Table(caption=caption, head=head, rows=rows)


def _row(features: str, runs: tuple[str, ...], found: dict[str, Probe], best: dict[str, float]) -> tuple[Cell, ...]:
    layers = found["knn"].layers
    if features == ALIGNED:
        name, note = runs[0], TITLES[features]
    else:
        name = TITLES[features]
        of = "" if features == LAST else f" ({listing(runs) if len(runs) <= NAMED else f'{len(runs)} runs'})"
        note = f"frozen, {layers}{of}"
    cells = [Cell(text=name, sub=note)]
    for method in ("knn", "linear"):
        probe = found[method]
        sub = between(probe.low, probe.high)
        cells.append(Cell(text=percent(probe.acc1), sub=sub, value=probe.acc1, best=probe.acc1 == best[method]))
        cells.append(Cell(text=percent(probe.mean_per_class_recall), value=probe.mean_per_class_recall))
    strength = found["linear"].setting
    return (*cells, Cell(text=f"{strength:g}", value=strength))
