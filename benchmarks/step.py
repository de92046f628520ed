"""What the slots cost: a training step against a bare loop of the same maths, and STRUCTURE against a plain step.

Run: `python -m benchmarks.step [--rows 1024] [--structure-rows 4096] [--repeats 10]`. Both run forward, backward and
AdamW on linear projectors; the bare loop is ten lines of torch with `torch.optim.AdamW`. CPU seconds are counted, so
set OMP_NUM_THREADS=1 on a busy machine.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.align.objective import Batch, Moment, Objective
from pipeline.align.optimiser import make_optimiser, set_rate
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.projectors.table import build_projector

IMAGE_WIDTH, TEXT_WIDTH, DIM = 1280, 384, 256
METHODS = ("info_nce", "modest_align", "variance_aware", "structure", "combined")


def features(rows: int) -> tuple[Tensor, Tensor]:
    """Return random image and text features."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, IMAGE_WIDTH, generator=generator), torch.randn(rows, TEXT_WIDTH, generator=generator)


def our_step(method: str, rows: int) -> Callable[[], None]:
    """Return one step of a method, as `pipeline.align.train` takes it."""
    recipe: Recipe = make_recipe(method, {"dim": DIM, "normalise_input": "none"})
    image = build_projector("linear", {"d_in": IMAGE_WIDTH, "d": DIM})
    text = build_projector("linear", {"d_in": TEXT_WIDTH, "d": DIM})
    objective = Objective(recipe)
    parameters = [p for module in (image, text, objective) for p in module.parameters()]
    optimiser = make_optimiser(parameters, betas=recipe.training.betas, weight_decay=recipe.training.weight_decay)
    batch, moment = Batch(*features(rows)), Moment(50, 100, torch.Generator(), torch.Generator())

    def step() -> None:
        loss, _ = objective(image, text, batch, moment)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_rate(optimiser, 1e-3)
        optimiser.step()

    return step


def bare_step(rows: int) -> Callable[[], None]:
    """Return the same maths as `info_nce`, by hand."""
    image, text = nn.Linear(IMAGE_WIDTH, DIM), nn.Linear(TEXT_WIDTH, DIM)
    tau = nn.Parameter(torch.tensor(-2.66))
    parameters = [*image.parameters(), *text.parameters(), tau]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    (x, y), labels = features(rows), torch.arange(rows)

    def step() -> None:
        logits = F.normalize(image(x), dim=1) @ F.normalize(text(y), dim=1).T / tau.exp()
        loss: Any = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


def seconds(step: Callable[[], None], repeats: int) -> float:
    """Return the CPU seconds of the fastest of some repeats, after one that warms up."""
    step()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--structure-rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=10)
    item = parser.parse_args()
    bare = seconds(bare_step(item.rows), item.repeats)
    print(f"{item.rows} rows: bare loop {bare * 1e3:.1f} ms")
    for method in METHODS:
        ours = seconds(our_step(method, item.rows), item.repeats)
        print(f"  {method:15} {ours * 1e3:7.1f} ms = {ours / bare:.2f} × bare")
    plain = seconds(our_step("info_nce", item.structure_rows), max(2, item.repeats // 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    structure = seconds(our_step("structure", item.structure_rows), max(2, item.repeats // 3))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    square = item.structure_rows**2 * 4
    print(
        f"{item.structure_rows} rows: info_nce {plain:.2f} s, structure {structure:.2f} s = {structure / plain:.2f} ×"
    )
    print(
        f"  peak memory {before / 2**20:.2f} → {after / 2**20:.2f} GiB, {(after - before) * 1024 / square:.1f} more N×N"
    )


if __name__ == "__main__":
    main()
