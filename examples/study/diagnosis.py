"""What lies behind the comparisons: broken pairs and queries, how sure a method is, schedules, maps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from examples.study.config import change_name
from examples.study.content import Content, accuracies, captions_words, is_broken, largest, split_by
from examples.study.figures import Line, clouds, colours_of, curves, percent_line
from examples.study.statistics import WEAK, Group, counted_in, rows_that
from examples.study.tables import count, grid_table, metric_table, shown, table

SURE = {
    "ECE i→t": "text_retrieval_ece",
    "ECE t→i": "image_retrieval_ece",
    "sure i→t": "text_retrieval_mean_max_probability",
    "sure t→i": "image_retrieval_mean_max_probability",
}
GEOMETRY = {
    "images: trustworthiness": "image_trustworthiness",
    "continuity": "image_continuity",
    "captions: trustworthiness": "text_trustworthiness",
    "continuity ": "text_continuity",
    "modality gap": "modality_gap",
}


def robustness(content: Content) -> Iterator[str]:
    """Yield what is left when pairs, words or images are broken."""
    for name, grid in content.config.grids.items():
        groups = content.grid(name)
        if not is_broken(content, name) or not groups:
            continue
        yield f"## {grid.about}"
        yield (
            "Swapped captions are in the training pairs: that share of the images has the captions of another. Words "
            "are dropped or moved in the test captions (the first of each image), noise is put on the test images' "
            "features (σ·‖x‖/√D a coordinate: at σ = 1 it is as long as the features), with projectors trained on "
            "clean pairs."
        )
        for (pairs, captions, layers), part in split_by(groups, "pairs", "captions", "layers"):
            yield f"### n = {count(pairs)}, {captions_words(captions).lower()}, layers {layers}"
            yield from _swapped(content, part, name)
            clean = [group for group in part if group.kind.swapped == 0]
            yield from _at_test_time(content, clean, name)


def _swapped(content: Content, groups: Sequence[Group], name: str) -> Iterator[str]:
    if len({group.kind.swapped for group in groups}) < 2:
        return
    yield "Mean recall, %, by the share of training images whose captions are another's:"
    yield grid_table(groups, "swapped", shown("mean_recall"))
    colours = colours_of(list(dict.fromkeys(group.kind.row for group in groups)), content.front)
    lines = [
        percent_line(row, {100 * group.kind.swapped: group.values("mean_recall") for group in held}, colours)
        for (row,), held in split_by(groups, "row")
    ]
    yield content.figure(f"{name}-swapped", curves({"swapped captions": lines}, "% of images", "mean recall, %"))


def _at_test_time(content: Content, groups: Sequence[Group], name: str) -> Iterator[str]:
    grid = content.config.grids[name]
    if not groups:
        return
    if grid.image_noise:
        yield "Mean recall, %, by the noise on the images' features:"
        levels = {0.0: "mean_recall"} | {level: f"noise {level:g}: mean_recall" for level in grid.image_noise}
        yield metric_table(groups, {f"σ = {level:g}": metric for level, metric in levels.items()})
        svg = curves({"noisy images": _levels(content, groups, levels)}, "σ", "mean recall, %")
        yield content.figure(f"{name}-noise", svg)
    panels: dict[str, list[Line]] = {}
    for kind in dict.fromkeys(kind for kind, _ in grid.changes):
        shares = [share for other, share in grid.changes if other == kind]
        verb = "go" if kind == "drop" else "move"
        yield f"Mean recall text → image, %, by the share of words that {verb}:"
        levels = {0.0: f"{change_name(kind, shares[0])}, clean: mean_recall"}
        levels |= {100 * share: f"{change_name(kind, share)}: mean_recall" for share in shares}
        yield metric_table(groups, {f"{level:g} %": metric for level, metric in levels.items()})
        panels[f"words that {verb}"] = _levels(content, groups, levels)
    if panels:
        yield content.figure(f"{name}-words", curves(panels, "% of words", "mean recall text → image, %"))


def _levels(content: Content, groups: Sequence[Group], levels: Mapping[float, str]) -> list[Line]:
    """Return a line a row: the metric of each level."""
    colours = colours_of(list(dict.fromkeys(group.kind.row for group in groups)), content.front)
    return [
        percent_line(group.kind.row, {x: group.values(metric) for x, metric in levels.items()}, colours)
        for group in groups
    ]


def confidence(content: Content) -> Iterator[str]:
    """Yield calibration, weakly matched captions and geometry of the main grid."""
    groups = content.grid(content.config.main)
    if not groups:
        return
    yield "## Over-confidence, weakly matched captions, geometry"
    for (captions, layers, n), part in split_by(groups, "captions", "layers", "pairs"):
        if n not in largest(groups):
            continue
        yield f"### n = {count(n)}, {captions_words(captions).lower()}, layers {layers}"
        yield (
            "ECE: expected calibration error, 15 bins, at the method's own temperature (learned; of a closed form "
            "fitted on validation pairs). Sure: mean of the highest probability; image → text the captions of an image "
            "share their probability, so what is sure there is low by construction. %"
        )
        yield metric_table(part, SURE | {f"ECE {name}": f"{name}/ece" for name in accuracies(part)})
        yield (
            f"Recall text → image of the {100 * WEAK:.0f} % of the test captions that agree least with the other "
            "captions of their image (cosine in the frozen text encoder; no method decides it), and of all, %:"
        )
        yield _weak_table(part)
        yield (
            "Neighbourhoods (5 neighbours, 500 images and a caption of each; 1 is untouched) and the distance between "
            "the means of the two modalities:"
        )
        yield metric_table(part, GEOMETRY)
        corrected = rows_that(content.config, lambda recipe, _: recipe.hubness.neighbours > 0)
        if corrected:
            yield (
                f"The embeddings of {', '.join(corrected)} hold coordinates of a hubness correction, which keep the "
                "two modalities apart by construction: its gap is not to be compared with the others'."
            )


def _weak_table(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        seeds = list(group.results)
        cells = [group.kind.row]
        for measure in ("weak_third_mean_recall", "all"):
            counted = [each._replace(weak=measure != "all") for each in counted_in("weak_third_mean_recall")]
            shares = [
                hits.sum(axis=1) / queries.sum() for hits, queries in (group.hits(each, seeds) for each in counted)
            ]
            values = np.mean(shares, axis=0)
            cells.append(f"{100 * values.mean():.1f} ± {100 * values.std(ddof=min(1, len(seeds) - 1)):.1f}")
        rows.append(cells)
    return table(["method", "weakest third", "all"], rows)


def schedules(content: Content) -> Iterator[str]:
    """Yield λ(t) of the rows whose weights move."""
    moved = [
        group
        for group in content.groups
        if any(result["lambda_i2t"] for result in group.results.values()) and not group.kind.swapped
    ]
    if not moved:
        return
    yield "## How the weights of the directions move"
    yield "Weight of image → text during training (both sum to 1; ½ is the plain loss), a line a seed."
    singles = list(dict.fromkeys(group.kind.row for group in moved))
    colours = colours_of(singles, singles[:6])
    for (grid, encoders, captions, n), part in split_by(moved, "grid", "encoders", "captions", "pairs"):
        if encoders != moved[0].kind.encoders or (grid != content.config.main and len(part) < 3):
            continue
        if n not in largest([group for group in moved if group.kind.grid == grid]):
            continue
        lines = [
            Line(name=group.kind.row, x=_points(each, 0), y=_points(each, 1), colour=colours.get(group.kind.row, ""))
            for group in part
            for each in group.results.values()
            if each["lambda_i2t"]
        ]
        name = f"lambda-{grid}-n{count(n).replace(',', '')}-c{count(captions)}"
        title = f"n = {count(n)}, {captions_words(captions).lower()}"
        yield content.figure(name, curves({title: lines}, "step", "weight of image → text"))


def _points(result: dict[str, Any], place: int) -> list[float]:
    return [float(point[place]) for point in result["lambda_i2t"]]


def pictures(content: Content) -> Iterator[str]:
    """Yield the maps."""
    maps = content.config.maps
    if not content.maps or maps is None:
        return
    yield "## Images and captions in the plane"
    yield (
        f"t-SNE (cosine) of test images and one caption of each in the shared space, seed {content.config.seeds[0]}, "
        f"n = {count(maps.pairs)}, {captions_words(maps.captions).lower()}; a line joins what belongs together. Before "
        "training means random linear projectors. The axes mean nothing, and distances between clusters little."
    )
    yield content.figure("maps", clouds(content.maps))
