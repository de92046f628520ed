"""The page put together, and its chapters on classes, labels, confidence, layers and training, and the record."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluate.features import ALIGNED, CHOSEN, LAST, NEIGHBOURS, Probe
from pipeline.evaluate.figures import NAMED as COLOURS_WITHOUT_ROLE
from pipeline.evaluate.figures import Series, confusion_map, layer_map, reliability, step_curves
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.output import TEMPLATES
from pipeline.evaluate.report.numbers import (
    curves_section,
    differences_section,
    results_section,
    seen_section,
    short_table,
)
from pipeline.evaluate.report.page import (
    Cell,
    Findings,
    Page,
    Picture,
    Section,
    Table,
    between,
    direction_name,
    percent,
)
from pipeline.evaluate.report.summary import NAMED, find_caveats, forest_picture, reasons, tiles, verdict
from pipeline.evaluate.results import Calibration, Ranks, RunResult, zero_shot_direction
from pipeline.evaluate.single import ROWS
from pipeline.projectors.run_record import DEFAULT, DEFAULT_TEMPERATURE
from pipeline.store.reader import FeatureStore
from pipeline.words import count, listing

FULL_BIN = 10  # answers
CONFUSIONS = 8
TITLES = {LAST: "last layer", CHOSEN: "chosen layers", ALIGNED: "aligned"}


def build_page(found: Findings) -> Page:
    """Return the report's page."""
    board, pairs, title = found.board, found.pairs, found.config.title
    images, captions = len(pairs.pairs.image_rows), len(pairs.pairs.caption_rows)
    stores = (*pairs.image.stores, *pairs.text.stores)
    encoders = " + ".join(str(store.manifest.provenance.get("spec") or store.root.name) for store in stores)
    subject = board.lead.name if len(board.runs) == 1 else count(len(board.runs), "run")
    sections = (
        differences_section(found),
        results_section(found),
        seen_section(found),
        curves_section(found),
        zero_shot_section(found),
        probes_section(found),
        calibration_section(board),
        layers_section(board),
        training_section(board),
        _examples_section(found),
        _counting_section(found),
        _record_section(found, stores),
    )
    return Page(
        title=title or f"{subject} on {encoders}",
        eyebrow=f"{title or encoders} · split {pairs.split} · {found.surroundings['date']}",
        verdict=verdict(board),
        reasons=reasons(board, images, captions),
        tiles=tiles(board),
        figure=forest_picture(board),
        caveats=find_caveats(found),
        short=short_table(board),
        sections=tuple(section for section in sections if section is not None),
    )


def zero_shot_section(found: Findings) -> Section | None:
    """Return confusion matrices of the best run and what it confuses most; none without a zero-shot set."""
    run, pictures, tables, lead = found.board.lead, [], [], []
    for data in found.sets:
        matrix, name = run.answers[zero_shot_direction(data.name)].confusion, data.name or "main data set"
        if matrix is None:
            continue
        size = f"{len(data.classes)} classes, {count(len(data.rows), 'image')}"
        caption = f"{name}: {size}, {run.name}, all seeds together. Rows add up to 100 %."
        pictures.append(Picture(svg=confusion_map(matrix, data.classes), caption=caption))
        tables.append(_confusions(name, matrix, data.classes))
        prompts = len(data.prompts.samples.label) / len(data.classes)
        lead.append(f"{name}: {prompts:.3g} prompts a class, averaged and normalised.")
    if not tables:
        return None
    return Section(
        id="zero-shot",
        title="Zero-shot classification",
        lead=tuple(lead),
        tables=tuple(tables),
        pictures=tuple(pictures),
    )


def _confusions(name: str, matrix: Ranks, classes: Sequence[str]) -> Table:
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


def probes_section(found: Findings) -> Section | None:
    """Return the tables of probes; none where nothing was probed."""
    lead = (
        "kNN and a linear classifier, trained on labels: they say what the image features hold, and what of it the "
        f"alignment kept. kNN: {NEIGHBOURS} nearest by cosine around the training mean, votes weighed by similarity. "
        "Linear: logistic regression on standardised features, C chosen on a fifth of the training rows. Aligned: the "
        "first seed.",
    )
    sets = dict.fromkeys(probe.set for probe in found.probes)
    tables = [_probe_table(name, [each for each in found.probes if each.set == name], found.board) for name in sets]
    return Section(id="probes", title="Probes", lead=lead, tables=tuple(tables)) if tables else None


def _probe_table(name: str, probes: Sequence[Probe], board: Leaderboard) -> Table:
    by_features: dict[tuple[str, tuple[str, ...]], dict[str, Probe]] = {}
    for probe in probes:
        by_features.setdefault((probe.features, probe.runs), {})[probe.method] = probe
    best = {method: max(probe.acc1 for probe in probes if probe.method == method) for method in ("knn", "linear")}
    kinds, order = list(TITLES), [run.name for run in board.runs]
    ranked = sorted(by_features, key=lambda each: (kinds.index(each[0]), order.index(each[1][0])))
    first = probes[0]
    caption = (
        f"{name or 'main data set'}: percent, below it the {100 * board.confidence:.0f} % interval over test images. "
        f"{first.train_rows:,} training and {first.test_rows:,} test images; {first.split}."
    )
    head = ("features", "kNN acc@1", "kNN per-class", "linear acc@1", "linear per-class", "C")
    return Table(caption=caption, head=head, rows=tuple(_probe_row(by_features[each], best) for each in ranked))


def _probe_row(found: dict[str, Probe], best: dict[str, float]) -> tuple[Cell, ...]:
    knn, linear = found["knn"], found["linear"]
    name, note = TITLES[knn.features], f"frozen, {knn.layers}"
    if knn.features == ALIGNED:
        name, note = knn.runs[0], name
    elif knn.features == CHOSEN:
        note += f" ({listing(knn.runs) if len(knn.runs) <= NAMED else f'{len(knn.runs)} runs'})"
    cells = [Cell(text=name, sub=note)]
    for probe in (knn, linear):
        cells.append(Cell.percent(probe.acc1, between(probe.low, probe.high), best=probe.acc1 == best[probe.method]))
        cells.append(Cell.percent(probe.mean_per_class_recall))
    return (*cells, Cell(text=f"{linear.setting:g}", value=linear.setting))


def calibration_section(board: Leaderboard) -> Section:
    """Return reliability diagrams and the table of calibration errors."""
    directions = list(board.lead.answers)
    shown = [run for run in board.runs if board.role(run) != "other"] or list(board.runs)
    pictures = [
        _reliability(board, shown, direction, scaled=scaled)
        for direction in directions
        for scaled in (False, True)
        if not scaled or any(run.answers[direction].calibration.scaled for run in shown)
    ]
    lead = (
        "Confidence is the softmax of cosine over temperature; ECE is its mean distance from the share that was right, "
        "over 15 bins.",
        *_scaling(board, directions),
        *_temperatures(board),
    )
    tables = (_calibration_table(board, directions),)
    title = "Calibration"
    return Section(id="calibration", title=title, lead=lead, tables=tables, pictures=tuple(pictures))


def _reliability(board: Leaderboard, shown: Sequence[RunResult], direction: str, *, scaled: bool) -> Picture:
    series = []
    for run in reversed(shown):
        own = run.answers[direction].calibration
        each = own.scaled if scaled else own
        bins = [] if each is None else [found for found in each.bins if found[2] >= FULL_BIN]
        x, y = ([found[axis] for found in bins] for axis in (0, 1))
        series.append(Series(name=run.name, role=board.role(run), x=x, y=y))
    how = "after temperature scaling on validation" if scaled else "with the run's own temperature"
    name = f"{direction_name(direction)}, {how}"
    asked = f"{len(board.lead.answers[direction].queries.ids):,} answers a seed"
    caption = f"{name}, {asked}. Below the dotted line a run is too sure. Bins of {FULL_BIN} answers and more."
    return Picture(svg=reliability(series, name), caption=caption)


def _scaling(board: Leaderboard, directions: Sequence[str]) -> Iterator[str]:
    """Say what scaling is, and where there was nothing to fit it on."""
    missing = [each for each in directions if not any(run.answers[each].calibration.scaled for run in board.runs)]
    if len(missing) < len(directions):
        yield (
            "Scaled: one temperature for each run and direction, at which the right answers of validation rows "
            f"({ROWS} images at most) are most likely. It changes no rank. This is the column to compare runs by."
        )
    if missing:
        yield f"No rows of a validation split for {listing([*map(direction_name, missing)])}: not scaled there."


def _temperatures(board: Leaderboard) -> Iterator[str]:
    """Say where the temperatures come from: they were not all made for calibration."""
    sources = {run.name: next(iter(run.answers.values())).calibration.temperature_source for run in board.runs}
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
    def cells(run: RunResult) -> Iterator[Cell]:
        stated = [run.answers[direction].calibration for direction in directions]
        yield Cell(text=f"{stated[0].temperature:.3f}", value=stated[0].temperature, sub=stated[0].temperature_source)
        for own in stated:
            yield _ece(own)
            yield _ece(own.scaled, f" at {own.scaled.temperature:.3f}" if own.scaled else "")

    names = [direction_name(direction) for direction in directions]
    head = ("run", "own temperature", *(text for name in names for text in (f"{name} ECE", f"{name} ECE, scaled")))
    caption = (
        "Percent, mean over seeds; below it the mean confidence and the share that was right. A small ECE is good."
    )
    return Table.of_runs(board.runs, head, cells, caption)


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
    return Section(id="layers", title="Layers", lead=lead, pictures=(picture,))


def training_section(board: Leaderboard) -> Section | None:
    """Return the curves of what was logged by each run's first seed; none where nothing was."""
    loss, structure = _logged(board, "loss"), _logged(board, "structure")
    if not loss:
        return None
    both = [*_logged(board, "lambda_i2t"), *_logged(board, "lambda_t2i", dashed=True)]
    varying = [line.name for line in both if not line.dashed and len(set(line.y)) > 1]
    weights = sorted((line for line in both if line.name in varying), key=lambda line: varying.index(line.name))
    said = "Loss, first seed of each run. Losses of different methods do not compare."
    directions = "Weight of each direction: solid image→text, dashed text→image, dotted ½."
    figures = (
        (loss, "loss", None, said),
        (weights, "direction weight λ", 0.5, directions),
        (structure, "structure term", None, "Structure regulariser, before its weight."),
    )
    pictures = (
        Picture(svg=step_curves(_coloured(lines, loss), label, reference), caption=caption)
        for lines, label, reference, caption in figures
        if lines
    )
    return Section(id="training", title="Training", pictures=tuple(pictures))


def _coloured(lines: Sequence[Series], among: Sequence[Series]) -> list[Series]:
    """Give grey lines colours of their own, which no role has and which are the same in all figures."""
    grey = list(dict.fromkeys(line.name for line in among if line.role == "other"))
    chosen = dict(zip(grey, COLOURS_WITHOUT_ROLE, strict=False)) if len(grey) <= len(COLOURS_WITHOUT_ROLE) else {}
    return [replace(line, colour=chosen.get(line.name, "")) for line in lines]


def _logged(board: Leaderboard, name: str, *, dashed: bool = False) -> list[Series]:
    """Return the line of every run whose first seed logged a quantity twice or more."""
    found = []
    for run in board.runs:
        steps = [step for step in next(iter(run.history.values()), []) if "step" in step and name in step]
        if len(steps) > 1:
            x, y = ([step[axis] for step in steps] for axis in ("step", name))
            found.append(Series(name=run.name, role=board.role(run), x=x, y=y, dashed=dashed))
    return found


def _examples_section(found: Findings) -> Section | None:
    if not found.examples:
        return None
    lead = f"By {found.board.lead.name}, seed {found.board.lead.seeds[0]}. {found.pictures.note}".strip()
    return Section(id="examples", title="Samples", lead=(lead,), groups=tuple(found.examples))


def _counting_section(found: Findings) -> Section:
    """Return what `counting.txt` says, a fact a line, with the numbers of this evaluation."""
    held, config = found.pairs.captions_of, found.config
    numbers = {
        "images": f"{len(held):,}",
        "split": found.pairs.split,
        "captions": f"{held.sum():,}",
        "each": f"{held.min()}" if held.min() == held.max() else f"{held.min()} to {held.max()}",
        "confidence": f"{100 * config.confidence:.0f} %",
        "draws": f"{config.bootstrap:,}",
        "seed": config.seed,
    }
    lines = (TEMPLATES / "counting.txt").read_text(encoding="utf-8").splitlines()
    facts = tuple((name, said.format(**numbers)) for name, _, said in (line.partition(": ") for line in lines))
    return Section(id="counting", title="Protocol", facts=facts)


def _record_section(found: Findings, stores: Sequence[FeatureStore]) -> Section:
    board = found.board
    folded = [(f"run.json of {run.name}", _json(run.record)) for run in board.runs]
    return Section(
        id="record",
        title="Provenance",
        facts=(*map(_store_fact, stores), *found.surroundings.items()),
        tables=(_run_table(board),),
        folded=(*folded, ("Settings of this evaluation", _json(vars(found.config)))),
    )


def _store_fact(store: FeatureStore) -> tuple[str, str]:
    digests = f"key {store.key.digest()[:12]}, content {store.content_digest[:12]}"
    return f"{store.key.modality} store", f"{store.root}, {count(store.rows, 'row')}, {digests}"


def _run_table(board: Leaderboard) -> Table:
    rows = []
    for run in board.runs:
        record, trained_on = run.record, run.training_images
        seconds = sum(float(entry.get("seconds", 0)) for entry in record["seeds"]) / len(run.seeds)
        rows.append(
            (
                Cell(text=run.name, sub=run.method if run.method != run.name else ""),
                Cell(text="?" if trained_on is None else f"{trained_on:,}", value=trained_on),
                Cell(text=", ".join(map(str, run.seeds))),
                *(Cell(text=" + ".join(record["layers"][side])) for side in ("image", "text")),
                Cell(text=str(record["dim"]), value=float(record["dim"])),
                Cell(text=f"{seconds:.2f}", value=seconds),
                Cell(text=run.address),
            )
        )
    head = ("run", "training images", "seeds", "image layers", "text layers", "d", "seconds a seed", "folder")
    return Table(caption="The runs that were evaluated.", head=head, rows=tuple(rows))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
