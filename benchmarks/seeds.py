"""Several seeds: one after the other, in worker processes, or stacked into one batched model; which is faster?

    python -m benchmarks.seeds [--pairs 250 1000 6000] [--seeds 4] [--steps 60] [--jobs 2] [--rounds 3]

InfoNCE with linear projectors (1280 and 384 wide to 256), batches of 512 at most, validation left out. `stacked` is a
bare loop on [S, D, d] weights and batched products, so what it shows is the most that batching seeds could give. CPU
seconds count all processes; wall seconds on a busy machine say little. Workers load torch once: `starting workers` is
that part alone.
"""

import argparse
import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.alternate import Work, alternate, show
from benchmarks.bare_steps import features
from pipeline.align.fit import initial_projectors
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import make_recipe
from pipeline.align.train import train
from pipeline.parallel import one_thread, run_side_by_side

DIM, BATCH = 256, 512
Item = tuple[int, int, int]


@cache
def pairs(count: int) -> PairFeatures:
    """Return so many random pairs."""
    return PairFeatures(*features(count), torch.arange(count + 1))


def train_one(item: Item) -> float:
    """Train (pairs, steps, seed) and return the last loss."""
    count, steps, seed = item
    settings = {"max_steps": steps, "validations": 1, "batch_size": BATCH}
    recipe = make_recipe("info_nce", {"dim": DIM, "training": settings, "normalise_input": "none"})
    data, few = pairs(count), pairs(count).head(2)
    start = initial_projectors(data, few, recipe, seed)
    return float(train(data, few, recipe, start, seed=seed).history[-1]["loss"])


def nothing(item: int) -> int:
    """Do nothing in a worker that has loaded what training needs."""
    return item


def stacked(count: int, steps: int, seeds: int) -> None:
    """Train all seeds as one model with an axis more."""
    data, parts = pairs(count), -(-count // BATCH)
    sides = [torch.randn(seeds, side.shape[1], DIM).div_(side.shape[1] ** 0.5) for side in (data.image, data.text)]
    weights = [side.requires_grad_() for side in sides]
    optimiser = torch.optim.AdamW(weights, lr=1e-3, fused=True)
    labels = torch.arange(count).tensor_split(parts)
    for step in range(steps):
        rows = torch.stack([torch.randperm(count)[: len(labels[step % parts])] for _ in range(seeds)])
        u, w = (
            F.normalize(_rows(side, rows) @ weight, dim=2) for side, weight in zip(data_of(data), weights, strict=True)
        )
        logits = u @ w.transpose(1, 2) / 0.07
        matches = torch.arange(rows.shape[1]).expand(seeds, -1)
        loss = F.cross_entropy(logits, matches) + F.cross_entropy(logits.transpose(1, 2), matches)
        optimiser.zero_grad()
        (loss * seeds / 2).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def data_of(data: PairFeatures) -> tuple[Tensor, Tensor]:
    """Return the features of both sides."""
    return data.image, data.text


def _rows(side: Tensor, rows: Tensor) -> Tensor:
    return side[rows.reshape(-1)].view(*rows.shape, -1)


def ways(count: int, steps: int, seeds: int, jobs: int) -> dict[str, Work]:
    """Return the ways to train some seeds."""
    items: list[Item] = [(count, steps, seed) for seed in range(seeds)]

    def one_after_the_other() -> None:
        for item in items:
            train_one(item)

    def on_one_thread(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with one_thread():
                work()

        return run

    return {
        "one after the other, 1 thread": on_one_thread(one_after_the_other),
        "one after the other, all threads": one_after_the_other,
        f"{jobs} workers of 1 thread": lambda: run_side_by_side(train_one, items, jobs=jobs),
        "starting workers": lambda: run_side_by_side(nothing, range(jobs), jobs=jobs),
        "stacked, 1 thread": on_one_thread(lambda: stacked(count, steps, seeds)),
        "stacked, all threads": lambda: stacked(count, steps, seeds),
    }


def main() -> None:
    """Print a table for each number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[250, 1000, 6000])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    item = parser.parse_args()
    train_one((item.pairs[0], 2, 0))
    for count in item.pairs:
        tasks = ways(count, item.steps, item.seeds, item.jobs)
        found = alternate(tasks, item.rounds)
        load = os.getloadavg()[0]
        show(
            f"{count} pairs, {item.seeds} seeds, {item.steps} steps (load {load:.1f}); rows are seeds",
            item.seeds,
            found,
        )


if __name__ == "__main__":
    main()
