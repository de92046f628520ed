"""Put the page together from everything that was found, and say first what a reader must know before believing it.

Caveats are looked for in the data and in the runs' own records.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.duplicates import NEAR, SAME, Duplicates, seen_section, without
from pipeline.evaluate.examples import Pictures
from pipeline.evaluate.leaderboard import Leaderboard, headline_names
from pipeline.evaluate.probes import Probe, probes_section
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure, chance_level
from pipeline.evaluate.report.diagnosis import calibration_section, layers_section, training_section, zero_shot_section
from pipeline.evaluate.report.page import Caveat, Cell, ExampleGroup, Page, Section, Table, measure_name, percent
from pipeline.evaluate.report.results import (
    curves_section,
    differences_section,
    forest_picture,
    reasons,
    results_section,
    tiles,
    verdict,
)
from pipeline.evaluate.single import RunResult
from pipeline.evaluate.tables import CURVE, training_images
from pipeline.store.reader import FeatureStore
from pipeline.store.views import Side
from pipeline.words import count, listing

IMBALANCE = 3.0
# Their model cards list captions of COCO and Flickr30k among the training text.
CAPTION_TRAINED = ("all-minilm", "all-mpnet", "paraphrase-", "all-distilroberta")
CAPTION_SETS = ("coco", "flickr")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the page speaks of."""

    board: Leaderboard
    """The runs."""
    pairs: TestPairs
    """The test pairs."""
    sets: Sequence[ZeroShotSet]
    """The sets to classify."""
    config: EvaluateConfig
    """The settings of this evaluation."""
    duplicates: Duplicates
    """What the test split shares with the training split."""
    probes: Sequence[Probe]
    """What labels can be read off the features."""
    examples: Sequence[ExampleGroup]
    """Example queries."""
    pictures: Pictures
    """Where thumbnails come from."""
    surroundings: Mapping[str, str]
    """Versions, hardware and times of this evaluation."""


def build_page(found: Findings) -> Page:
    """Return the report's page."""
    board, pairs, config = found.board, found.pairs, found.config
    images, captions = len(pairs.pairs.image_rows), len(pairs.pairs.caption_rows)
    encoders = " + ".join(spec for side in (pairs.image, pairs.text) for spec in specs(side))
    subject = board.lead.name if len(board.runs) == 1 else count(len(board.runs), "run")
    sections = (
        results_section(board),
        differences_section(board),
        seen_section(board, pairs, found.duplicates, config.duplicate_cosine, found.pictures),
        curves_section(board, _chance_curves(pairs), {IMAGE_RETRIEVAL: images, TEXT_RETRIEVAL: captions}),
        zero_shot_section(board, found.sets),
        probes_section(board, found.probes),
        calibration_section(board),
        layers_section(board),
        training_section(board),
        _examples_section(board, found.examples, found.pictures),
        _counting_section(pairs, config),
        _record_section(board, pairs, config, found.surroundings),
    )
    return Page(
        title=config.title or f"{subject} on {encoders}",
        eyebrow=f"{config.title or encoders} · split {pairs.split} · {found.surroundings['date']}",
        verdict=verdict(board),
        reasons=reasons(board, images, captions),
        tiles=tiles(board),
        figure=forest_picture(board),
        caveats=find_caveats(board, pairs, found.sets, config, found.duplicates),
        sections=tuple(section for section in sections if section is not None),
    )


def specs(side: Side) -> list[str]:
    """Return the encoders of a side as the user typed them."""
    return [str(store.manifest.provenance.get("spec") or store.root.name) for store in side.stores]


def _chance_curves(pairs: TestPairs) -> dict[str, list[float]]:
    return {
        name: [chance_level(Measure(name="", direction=name, k=k), pairs.captions_of) for k in CURVE]
        for name in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL)
    }


def _examples_section(board: Leaderboard, examples: Sequence[ExampleGroup], pictures: Pictures) -> Section | None:
    if not examples:
        return None
    lead = f"By {board.lead.name}, seed {board.lead.seeds[0]}. {pictures.note}".strip()
    return Section(id="examples", title="What it finds", lead=(lead,), groups=tuple(examples))


def _counting_section(pairs: TestPairs, config: EvaluateConfig) -> Section:
    held = pairs.captions_of
    spread = f"{held.min()}" if held.min() == held.max() else f"{held.min()} to {held.max()}"
    facts = (
        ("Images", f"{len(held):,} of split {pairs.split}, each once in the gallery"),
        ("Captions", f"{held.sum():,}, {spread} an image"),
        ("text→image R@k", "share of captions whose image is among the first k of all unique images"),
        ("image→text R@k", "share of images one of whose captions is among the first k of all captions"),
        ("Ties", "count against the query: whatever scores the same as the right answer stands before it"),
        ("Chance", "what random embeddings reach on average, counted from the galleries"),
        ("Seeds", "± is the sample standard deviation over seeds of training; one seed has none"),
        (
            "Intervals",
            f"{100 * config.confidence:.0f} % percentile bootstrap, {config.bootstrap:,} draws of test images with all "
            f"their captions, seed {config.seed}; hits are averaged over seeds first",
        ),
        (
            "Differences",
            "the same draws for both runs; intervals and p in tables are each for one comparison alone. What is said "
            "to win, to beat or to stay below holds for all pairs of runs on that measure at once (largest studentised "
            "bootstrap difference of any pair), and against twice the standard error over seeds",
        ),
        (
            "Zero-shot",
            "class embedding = normalised mean of its normalised prompts; per-class = mean recall over classes",
        ),
    )
    return Section(id="counting", title="How it was counted", facts=facts)


def _record_section(
    board: Leaderboard, pairs: TestPairs, config: EvaluateConfig, surroundings: Mapping[str, str]
) -> Section:
    stores = (*pairs.image.stores, *pairs.text.stores)
    folded = [(f"run.json of {run.name}", _json(run.record)) for run in board.runs]
    return Section(
        id="record",
        title="The record",
        facts=(*(_store_fact(store) for store in stores), *surroundings.items()),
        tables=(_run_table(board),),
        folded=(*folded, ("Settings of this evaluation", _json(vars(config)))),
    )


def _store_fact(store: FeatureStore) -> tuple[str, str]:
    digests = f"key {store.key.digest()[:12]}, content {store.content_digest[:12]}"
    return f"{store.key.modality} store", f"{store.root}, {count(store.rows, 'row')}, {digests}"


def _run_table(board: Leaderboard) -> Table:
    rows = []
    for run in board.runs:
        seconds = sum(float(entry.get("seconds", 0)) for entry in run.record["seeds"]) / len(run.seeds)
        trained_on = training_images(run.record)
        rows.append(
            (
                Cell(text=run.name, sub=run.method if run.method != run.name else ""),
                Cell(text="?" if trained_on is None else f"{trained_on:,}", value=trained_on),
                Cell(text=", ".join(map(str, run.seeds))),
                Cell(text=" + ".join(run.record["layers"]["image"])),
                Cell(text=" + ".join(run.record["layers"]["text"])),
                Cell(text=str(run.record["dim"]), value=float(run.record["dim"])),
                Cell(text=f"{seconds:.2f}", value=seconds),
                Cell(text=run.address),
            )
        )
    head = ("run", "training images", "seeds", "image layers", "text layers", "d", "seconds a seed", "folder")
    return Table(caption="The runs that were evaluated.", head=head, rows=tuple(rows))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def find_caveats(
    board: Leaderboard, pairs: TestPairs, sets: Sequence[ZeroShotSet], config: EvaluateConfig, duplicates: Duplicates
) -> tuple[Caveat, ...]:
    """Return all caveats, the gravest first."""
    images = len(pairs.pairs.image_rows)
    return (
        *split_caveats(board.runs, pairs.split),
        *duplicate_caveats(board, duplicates, config.duplicate_cosine),
        *cut_off_caveats(config.ks, images),
        *small_set_caveats(board, images),
        *seed_caveats(board),
        *text_encoder_caveats(pairs),
        *(caveat for data in sets for caveat in class_caveats(data)),
        *(Caveat(title="Note", text=note) for note in config.notes),
    )


def split_caveats(runs: Sequence[RunResult], split: str) -> Iterator[Caveat]:
    """Say so where the evaluated split was trained on, or where layers or steps were chosen on it."""
    for use, key in (("trained on it", "train_split"), ("chose their best step on it", "validation_split")):
        guilty = [run.name for run in runs if run.record.get("config", {}).get(key) == split]
        if guilty:
            text = f"{listing(guilty)} {use}. Their numbers say nothing about new data."
            yield Caveat(title=f"The split {split} was not held out", text=text)
    other = [run.name for run in runs if not _layers_from_training(run)]
    if other:
        text = f"The layers of {listing(other)} were chosen on another split than train."
        yield Caveat(title="Layers chosen outside the training split", text=text)


def _layers_from_training(run: RunResult) -> bool:
    trained_on = run.record.get("config", {}).get("train_split", "train")
    return not run.layer_pairs or run.layer_pairs.get("split", trained_on) in (trained_on, "", "train")


def duplicate_caveats(board: Leaderboard, found: Duplicates, threshold: float) -> Iterator[Caveat]:
    """Say so where test images are nearly training images, or test captions stand in the training split."""
    near, same = found.count(NEAR), found.count(SAME)
    if near:
        text = (
            f"{count(near, 'test image')} {'has' if near == 1 else 'have'} a training image with a cosine above "
            f"{threshold:g} in the centred frozen features{_without(board, found, NEAR)}"
        )
        yield Caveat(title="Near-duplicates between train and test", text=text)
    if same:
        verb = "stands" if same == 1 else "stand"
        text = f"{count(same, 'test caption')} {verb} in the training split word for word{_without(board, found, SAME)}"
        yield Caveat(title="Captions of the test set in training", text=text)
    for name in dict.fromkeys(twin.set for twin in found.twins if twin.set):
        text = f"{count(found.count(NEAR, name), 'image')} of {name} are nearly training images of the runs."
        yield Caveat(title=f"{name} has pictures of the training split", text=text)


def _without(board: Leaderboard, found: Duplicates, kind: str) -> str:
    """Say what leaving the touched queries out does to the best run."""
    run, parts = board.lead, []
    for measure in board.measures:
        if measure.name in headline_names(board.k) and (touched := found.touched[kind].get(measure.direction)):
            value = without(measure, run.queries[measure.direction], touched)
            left = "nothing is left" if value is None else f"{percent(run.mean(measure.name))} becomes {percent(value)}"
            parts.append(f"{measure_name(measure)} {left}")
    changed = f" Without them, {run.name}: {', '.join(parts)}." if parts else ""
    return f". They may be remembered, not understood.{changed}"


def cut_off_caveats(ks: Sequence[int], images: int) -> Iterator[Caveat]:
    """Say so where a cut-off is no smaller than the gallery: then every answer is right."""
    idle = [f"R@{k}" for k in ks if k >= images]
    if idle:
        text = f"With {count(images, 'test image')} text→image {listing(idle)} is 100 % whatever the model."
        yield Caveat(title="Cut-offs beyond the gallery", text=text)


def small_set_caveats(board: Leaderboard, images: int) -> Iterator[Caveat]:
    """Say so where the interval of the best run is wider than the differences that the report speaks of."""
    low, high = board.interval(board.lead)
    known = f"With {count(images, 'test image')} {{}} number is known to ± {percent((high - low) / 2)} points"
    if len(board.runs) > 1 and not board.apart(board.runs[0], board.runs[1]):
        gap = board.gap(board.runs[0], board.runs[1]).value
        text = (
            f"{known.format('a')}, and the first two runs differ by {percent(abs(gap))}. More test images, not more "
            "decimals, would settle it."
        )
        yield Caveat(title="The test set is too small to tell the first two apart", text=text)
    elif (high - low) / 2 > 0.05:
        yield Caveat(title="A small test set", text=f"{known.format('every')} only.")


def seed_caveats(board: Leaderboard) -> Iterator[Caveat]:
    """Say so where a trained run stands on one seed, or where the lead is no larger than the spread over seeds."""
    lead, second = board.runs[0], board.runs[1] if len(board.runs) > 1 else None
    if second is not None:
        gap, error = board.gap(lead, second).value, board.seed_error(lead, second)
        if error and gap <= 2 * error:
            text = (
                f"{lead.name} leads {second.name} by {percent(gap)} points; the standard error of that lead over "
                f"seeds is {percent(error)}. Other seeds could turn the order round."
            )
            yield Caveat(title="The lead is within the spread over seeds", text=text)
            return
    single = [run.name for run in board.runs if run.trained and len(run.seeds) < 2]
    if single:
        text = f"{listing(single)}: one seed does not show whether a result is merit or luck in training."
        yield Caveat(title="One seed", text=text)


def text_encoder_caveats(pairs: TestPairs) -> Iterator[Caveat]:
    """Say so where the sentence encoder was trained on captions of the same family as the test set."""
    about = " ".join(str(store.manifest.provenance.get("dataset", "")) for store in pairs.image.stores).lower()
    specs = [str(store.manifest.provenance.get("spec", "")) for store in pairs.text.stores]
    guilty = [spec for spec in specs if any(name in spec.lower() for name in CAPTION_TRAINED)]
    if guilty and any(name in about for name in CAPTION_SETS):
        text = f"The text encoder {listing(guilty)} was trained on captions of COCO and Flickr30k, says its model card."
        yield Caveat(title="The text encoder knows captions of this kind", text=text)


def class_caveats(data: ZeroShotSet) -> Iterator[Caveat]:
    """Say so where classes are of very different sizes, or images without a label were left out."""
    sizes = Counter(data.labels).most_common()
    (large, most), (small, least) = sizes[0], sizes[-1]
    name = data.name or "the main data set"
    if most > IMBALANCE * least:
        text = (
            f"In {name} class {large!r} has {count(most, 'test image')} and {small!r} has {least:,}: read the "
            "per-class recall beside the accuracy."
        )
        yield Caveat(title="Unequal classes", text=text)
    if data.unlabelled:
        text = f"{count(data.unlabelled, 'image')} of {name} without a label are left out of zero-shot."
        yield Caveat(title="Images without a label", text=text)
