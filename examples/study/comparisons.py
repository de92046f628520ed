"""Who is better than whom: claims, the main grid and the others. Sentences say only what holds by construction."""

from collections.abc import Iterator, Sequence

from examples.study.claims import judge_claims
from examples.study.content import Content, accuracies, captions_words, is_broken, largest, split_by
from examples.study.figures import colours_of, curves, percent_line
from examples.study.statistics import Group, select
from examples.study.tables import (
    best_closed_sentence,
    claims_table,
    count,
    differences_tables,
    grid_table,
    layers_chosen_table,
    metric_table,
    shown,
)

R1 = {"R@1 i→t": "text_retrieval_recall@1", "R@1 t→i": "image_retrieval_recall@1"}


def claims(content: Content) -> Iterator[str]:
    """Yield what is claimed and what the cells say."""
    tested = judge_claims(content.config, content.groups)
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


def main(content: Content) -> Iterator[str]:
    """Yield the main grid: mean recall, differences, curves, R@1, captions."""
    config, groups = content.config, content.grid(content.config.main)
    if not groups:
        return
    yield f"## {config.grids[config.main].about}"
    yield from _curves(content, groups)
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


def _curves(content: Content, groups: Sequence[Group]) -> Iterator[str]:
    colours = colours_of(list(dict.fromkeys(group.kind.row for group in groups)), content.front)
    sized = [group for group in groups if group.kind.pairs is not None]
    if len({group.kind.pairs for group in sized}) < 2:
        return
    for name, metric in {"mean recall, %": "mean_recall", **_accuracy_labels(groups)}.items():
        panels = {
            f"{captions_words(captions)}, layers {layers}": [
                percent_line(row, {group.kind.pairs or 0: group.values(metric) for group in held}, colours)
                for (row,), held in split_by(part, "row")
            ]
            for (captions, layers), part in split_by(sized, "captions", "layers")
        }
        svg = curves(panels, "training images", name, logarithmic=True)
        yield content.figure(f"efficiency-{metric.replace('/', '-')}", svg)
    yield "Bands are one standard deviation over seeds."


def _accuracy_labels(groups: Sequence[Group]) -> dict[str, str]:
    return {f"{name}, zero-shot accuracy, %": metric for name, metric in accuracies(groups).items()}


def other_grids(content: Content) -> Iterator[str]:
    """Yield a section for each grid beside the main one and the broken ones."""
    config = content.config
    for name, grid in config.grids.items():
        groups = content.grid(name)
        if name == config.main or is_broken(content, name) or not groups:
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
