"""Mutual kNN of all 13 × 25 layer pairs at n = 5000 with 200 permutations, against a loop that starts anew for each.

Run: `python -m benchmarks.layers [--rows 5000] [--width 768] [--pairs 2]`. The loop searches the neighbours of both
layers for every pair and has no null; it is timed on a few pairs and scaled to all of them.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.alternate import measured
from pipeline.metrics.similarity import compare_layers, nearest_neighbours, neighbour_count

IMAGE_LAYERS, TEXT_LAYERS = 13, 25


def make(rows: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return layers that share 32 directions the more, the deeper they are."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(rows, 32, generator=generator)

    def layer(depth: float) -> Tensor:
        common = shared @ torch.randn(32, width, generator=generator)
        return common + (10 - 5 * depth) * torch.randn(rows, width, generator=generator)

    return (
        [layer(i / IMAGE_LAYERS) for i in range(IMAGE_LAYERS)],
        [layer(i / TEXT_LAYERS) for i in range(TEXT_LAYERS)],
    )


def naive(a: Tensor, b: Tensor, k: int) -> float:
    """Score one pair from scratch: two searches, then row after row of sets."""
    tables = []
    for x in (a, b):
        unit = torch.nn.functional.normalize(x, dim=1)
        scores = unit @ unit.T
        scores.fill_diagonal_(-torch.inf)
        tables.append(scores.topk(k, dim=1).indices.tolist())
    shared = sum(len(set(x) & set(y)) for x, y in zip(tables[0], tables[1], strict=True))
    return shared / (len(a) * k)


def main() -> None:
    """Time both and print seconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=2, help="pairs that the loop is timed on")
    parser.add_argument("--permutations", type=int, default=200)
    arguments = parser.parse_args()
    image, text = make(arguments.rows, arguments.width)
    k = neighbour_count(arguments.rows)
    tables, searches = measured(lambda: [nearest_neighbours(x, k) for x in (*image, *text)])
    sides, permutations = (tables[:IMAGE_LAYERS], tables[IMAGE_LAYERS:]), arguments.permutations
    found, pairs = measured(lambda: compare_layers(*sides, permutations=permutations))
    scores, naively = measured(lambda: [naive(image[i], text[-1 - i], k) for i in range(arguments.pairs)])
    gaps = [abs(score - found.score[i, -1 - i]) for i, score in enumerate(scores)]
    loop, total = naively.wall / arguments.pairs * IMAGE_LAYERS * TEXT_LAYERS, searches.wall + pairs.wall
    print(f"ours: {total:.1f} s ({searches.wall:.1f} s searches, {pairs.wall:.1f} s pairs and null)")
    print(f"loop without a null, scaled from {arguments.pairs} pairs: {loop:.0f} s ({loop / total:.1f} × ours)")
    print(f"largest difference between the scores: {max(gaps):.1e}")


if __name__ == "__main__":
    main()
