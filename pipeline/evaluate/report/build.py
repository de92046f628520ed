"""Put the page together from everything that was found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate.caveats import find_caveats
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.duplicates import Duplicates, seen_section
from pipeline.evaluate.examples import Pictures
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.probes import Probe, probes_section
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure, chance_level
from pipeline.evaluate.report.diagnosis import calibration_section, layers_section, training_section, zero_shot_section
from pipeline.evaluate.report.page import Cell, ExampleGroup, Page, Section, Table
from pipeline.evaluate.report.results import (
    curves_section,
    differences_section,
    forest_picture,
    reasons,
    results_section,
    tiles,
    verdict,
)
from pipeline.evaluate.tables import CURVE, training_images
from pipeline.store.reader import FeatureStore
from pipeline.store.views import Side
from pipeline.words import count


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
