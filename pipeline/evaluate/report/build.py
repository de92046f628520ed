"""Put the page together from everything that was found."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure, chance_level
from pipeline.evaluate.report.diagnosis import calibration_section, layers_section, training_section, zero_shot_section
from pipeline.evaluate.report.page import Caveat, Cell, ExampleGroup, Page, Section, Table
from pipeline.evaluate.report.results import curves_section, differences_section, forest_picture, results_section
from pipeline.evaluate.report.verdict import reasons, tiles, verdict
from pipeline.evaluate.tables import CURVE, training_images
from pipeline.store.reader import FeatureStore
from pipeline.words import count


def build_page(
    summary: Leaderboard,
    pairs: TestPairs,
    sets: Sequence[ZeroShotSet],
    config: EvaluateConfig,
    *,
    caveats: Sequence[Caveat],
    seen: Section | None,
    probes: Section | None,
    examples: Sequence[ExampleGroup],
    pictures_note: str,
    surroundings: Mapping[str, str],
) -> Page:
    """Return the report's page.

    Args:
        summary: The runs.
        pairs: The test pairs.
        sets: The zero-shot sets.
        config: The settings of this evaluation.
        caveats: What must be known before believing a number.
        seen: What the test split shares with the training split.
        probes: What labels can be read off the features.
        examples: Example queries.
        pictures_note: Why pictures are missing; empty where none is.
        surroundings: Versions, hardware and times of this evaluation.
    """
    images, captions = len(pairs.pairs.image_rows), len(pairs.pairs.caption_rows)
    encoders = " + ".join([*specs(pairs, "image"), *specs(pairs, "text")])
    sections = [
        results_section(summary),
        differences_section(summary),
        seen,
        curves_section(summary, _chance_curves(pairs), {IMAGE_RETRIEVAL: images, TEXT_RETRIEVAL: captions}),
        zero_shot_section(summary, sets),
        probes,
        calibration_section(summary),
        layers_section(summary),
        training_section(summary),
        _examples_section(examples, pictures_note, summary),
        _counting_section(summary, pairs, config),
        _record_section(summary, pairs, config, surroundings),
    ]
    return Page(
        title=config.title or f"{_runs(summary)} on {encoders}",
        eyebrow=f"{config.title or encoders} · split {pairs.split} · {surroundings['date']}",
        verdict=verdict(summary),
        reasons=reasons(summary, images, captions),
        tiles=tiles(summary),
        figure=forest_picture(summary),
        caveats=tuple(caveats),
        sections=tuple(section for section in sections if section is not None),
    )


def _runs(summary: Leaderboard) -> str:
    return summary.lead.name if len(summary.runs) == 1 else count(len(summary.runs), "run")


def specs(pairs: TestPairs, side: str) -> list[str]:
    """Return the encoders of a side as the user typed them."""
    stores = (pairs.image if side == "image" else pairs.text).stores
    return [str(store.manifest.provenance.get("spec") or store.root.name) for store in stores]


def _chance_curves(pairs: TestPairs) -> dict[str, list[float]]:
    images, captions = len(pairs.pairs.image_rows), pairs.captions_of
    return {
        direction: [
            chance_level(Measure(name="", direction=direction, k=k), images=images, captions=captions, classes=0)
            for k in CURVE
        ]
        for direction in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL)
    }


def _examples_section(examples: Sequence[ExampleGroup], note: str, summary: Leaderboard) -> Section | None:
    if not examples:
        return None
    lead = f"By {summary.lead.name}, seed {summary.lead.seeds[0]}."
    return Section(id="examples", title="What it finds", lead=(f"{lead} {note}".strip(),), groups=tuple(examples))


def _counting_section(summary: Leaderboard, pairs: TestPairs, config: EvaluateConfig) -> Section:
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
    summary: Leaderboard, pairs: TestPairs, config: EvaluateConfig, surroundings: Mapping[str, str]
) -> Section:
    stores = [store for side in (pairs.image, pairs.text) for store in side.stores]
    folded = [(f"run.json of {run.name}", _json(run.record)) for run in summary.runs]
    return Section(
        id="record",
        title="The record",
        facts=(*(_store_fact(store) for store in stores), *surroundings.items()),
        tables=(_run_table(summary),),
        folded=(*folded, ("Settings of this evaluation", _json(vars(config)))),
    )


def _store_fact(store: FeatureStore) -> tuple[str, str]:
    digests = f"key {store.key.digest()[:12]}, content {store.content_digest[:12]}"
    return f"{store.key.modality} store", f"{store.root}, {count(store.rows, 'row')}, {digests}"


def _run_table(summary: Leaderboard) -> Table:
    rows = []
    for run in summary.runs:
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
