"""The sections of the study's page. Every number comes from cells; sentences say only what holds by construction."""

from collections.abc import Iterator, Sequence

from examples.study.claims import judge_claims
from examples.study.diagnosis import confidence, pictures, robustness, schedules
from examples.study.figures import Line, colours_of, curves
from examples.study.markdown import count, table
from examples.study.material import Material, Section, accuracies, captions_words, is_broken, largest, split_by
from examples.study.statistics import Group, rows_that, select
from examples.study.tables import (
    best_closed_sentence,
    claims_table,
    cost_table,
    differences_tables,
    grid_table,
    layers_chosen_table,
    metric_table,
    shown,
)
from pipeline.words import duration

R1 = {"R@1 i→t": "text_retrieval_recall@1", "R@1 t→i": "image_retrieval_recall@1"}


def claims(material: Material) -> Iterator[str]:
    """Yield what is claimed and what the cells say."""
    tested = judge_claims(material.config, material.groups)
    if not tested:
        return
    yield "## Which claims hold here"
    yield (
        "The verdict is a rule, not an opinion: *holds here* where the 95 % interval of the effect lies above zero, "
        "*the opposite holds here* where it lies below, *no difference to be seen here* otherwise. An effect is the "
        "mean over the cells of the grid that fit; where test queries can be counted, test images and seeds are drawn "
        "again together, paired; other numbers are compared seed by seed (Student's t). "
        f"Of {len(tested)} intervals of 95 % about {max(1, round(0.05 * len(tested)))} may miss by chance. A claim "
        "that does not hold here, with frozen small encoders and few pairs, may well hold where it was made."
    )
    yield claims_table(tested)


def main(material: Material) -> Iterator[str]:
    """Yield the main grid: mean recall, differences, curves, R@1, captions."""
    config, groups = material.config, material.grid(material.config.main)
    if not groups:
        return
    yield f"## {config.grids[config.main].about}"
    yield from _curves(material, groups)
    for (captions, layers), part in split_by(groups, "captions", "layers"):
        yield f"### {captions_words(captions)}, layers {layers}: mean recall, %"
        yield "Mean of R@1, R@5 and R@10 in both directions, mean ± s.d. over seeds."
        yield grid_table(part, "pairs", shown("mean_recall"))
        yield "Differences in points with their 95 % intervals; bold where the interval leaves out zero. " + (
            best_closed_sentence(config, part)
        )
        yield from differences_tables(config, part, "mean_recall")
        for n in largest(part):
            yield f"R@1, median rank and zero-shot accuracy at n = {count(n)}:"
            ranks = {"median rank i→t": "text_retrieval_median_rank", "median rank t→i": "image_retrieval_median_rank"}
            yield metric_table(select(part, pairs=n), R1 | ranks | accuracies(part))
    yield from _chosen(groups)


def _curves(material: Material, groups: Sequence[Group]) -> Iterator[str]:
    colours = colours_of(list(dict.fromkeys(group.kind.row for group in groups)), material.front)
    sized = [group for group in groups if group.kind.pairs is not None]
    if len({group.kind.pairs for group in sized}) < 2:
        return
    for name, metric in {"mean recall, %": "mean_recall", **_accuracy_labels(groups)}.items():
        panels = {
            f"{captions_words(captions)}, layers {layers}": [
                Line(
                    name=row,
                    x=[float(group.kind.pairs or 0) for group in held],
                    y=[100 * float(group.values(metric).mean()) for group in held],
                    spread=[100 * float(group.values(metric).std()) for group in held],
                    colour=colours.get(row, ""),
                )
                for (row,), held in split_by(part, "row")
            ]
            for (captions, layers), part in split_by(sized, "captions", "layers")
        }
        svg = curves(panels, "training images", name, logarithmic=True)
        yield material.figure(f"efficiency-{metric.replace('/', '-')}", svg)
    yield "Bands are one standard deviation over seeds."


def _accuracy_labels(groups: Sequence[Group]) -> dict[str, str]:
    return {f"{name}, zero-shot accuracy, %": metric for name, metric in accuracies(groups).items()}


def other_grids(material: Material) -> Iterator[str]:
    """Yield a section for each grid beside the main one and the broken ones."""
    config = material.config
    for name, grid in config.grids.items():
        groups = material.grid(name)
        if name == config.main or is_broken(material, name) or not groups:
            continue
        yield f"## {grid.about}"
        for (encoders, captions, n), part in split_by(groups, "encoders", "captions", "pairs"):
            yield f"### {encoders}, n = {count(n)}, {captions_words(captions).lower()}"
            if len({group.kind.layers for group in part}) > 1:
                yield "Mean recall on the test split, %, by layers:"
                yield grid_table(part, "layers", shown("mean_recall"))
            else:
                yield metric_table(part, {"mean recall": "mean_recall"} | R1 | accuracies(part) | _ece(part))
                yield from differences_tables(config, part, "mean_recall")
        yield from _chosen(groups)


def _chosen(groups: Sequence[Group]) -> Iterator[str]:
    held = [group for group in groups if group.kind.layers in ("auto", "pair", "stack", "grow", "spread")]
    if held:
        yield "Layers that were chosen (by the pairs of the first seed, for all its seeds):"
        yield layers_chosen_table(held)


def _ece(groups: Sequence[Group]) -> dict[str, str]:
    return {"ECE t→i": "image_retrieval_ece"}


def costs(material: Material) -> Iterator[str]:
    """Yield what it took."""
    groups = material.grid(material.config.main)
    yield "## What it costs"
    if groups:
        yield "Core-seconds of a run (projectors alone, one thread, features already read), mean over seeds:"
        captions = groups[-1].kind.captions
        yield cost_table(select(groups, captions=captions, layers=groups[-1].kind.layers))
    parts = material.record.get("parts", {})
    if parts:
        yield "The whole study, measurements included:"
        rows = (
            [name, f"{each['core']:.0f}", duration(each["wall"]), str(each["jobs"])] for name, each in parts.items()
        )
        yield table(["grid", "core-seconds", "wall time", "at once"], rows)
    versions = ", ".join(f"{name} {value}" for name, value in material.record.get("versions", {}).items())
    if versions:
        yield f"Made with {versions} on {material.record.get('machine', 'an unknown machine')}."


def conduct(material: Material) -> Iterator[str]:
    """Yield what was done, what was chosen where, and how to do it again."""
    config = material.config
    yield "## How it was done"
    yield f"    {material.command}"
    yield (
        "The command imports and extracts what is missing, does every cell (method × training images × captions × "
        "layers × seed) that is not finished, and writes this page; no number in it was typed. By pieces: "
        "`--grid NAME`; the cost first: `--dry-run`; the page alone: `--only-page`. Every cell's numbers are in "
        "`results.csv`, the rank of every query beside it."
    )
    growing = rows_that(config, lambda recipe, method: "grow" in (method.layers or recipe.layers))
    grown = f"; the layers of {', '.join(growing)}, which are added while validation recall rises" if growing else ""
    sets = f"; zero-shot on {', '.join(config.zero_shot)}" if config.zero_shot else ""
    yield "\n".join(
        [
            f"- **Trained on** the split `train` of {config.dataset}: n images and their captions, drawn by seed "
            f"({', '.join(map(str, config.seeds))}); fewer images are a part of more.",
            "- **Chosen on training images**: the layers (mutual nearest neighbours, arXiv 2506.16895; the first "
            "seed's images, once for all methods).",
            "- **Chosen on validation** (split `val`): ridge strengths, the step that training keeps, the temperature "
            f"of closed forms, and which closed form is called the best{grown}.",
            f"- **Measured on** the split `{config.split}`, on which nothing was chosen{sets}. "
            "Text → image: the gallery is the unique images; image → text: any of the image's captions counts; ties "
            "count against the method.",
        ]
    )
    if config.notes:
        yield "\n".join(f"- {note}" for note in config.notes)


SECTIONS: tuple[Section, ...] = (claims, main, other_grids, robustness, confidence, schedules, pictures, costs, conduct)
"""The page, from top to bottom."""
