"""What the slots cost: a training step against a bare loop of the same maths, and STRUCTURE against a plain step.

    OMP_NUM_THREADS=1 python -m benchmarks.step [--rows 1024] [--dim 256] [--structure-rows 4096] [--repeats 20]

Steps are forward, backward, clipping and AdamW on linear projectors (1280 and 384 wide to d). `ours` is the step that
`pipeline.align.train` takes, its log included; `bare` is `benchmarks.bare_steps`. All of them are timed in turn, CPU
seconds, so that a busy machine slows all alike; a ratio is the median of the rounds' ratios. `matrix work` is the
products that an InfoNCE step cannot do without, and nothing else.
"""

import argparse
import resource
import statistics
from collections.abc import Mapping

import torch

from benchmarks.alternate import rounds
from benchmarks.bare_steps import IMAGE_WIDTH, TEXT_WIDTH, Step, bare_step, features
from pipeline.align.objective import Batch, StepContext
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.align.train import History, Stepper
from pipeline.projectors.run_record import build_projector

METHODS = ("info_nce", "modest_align", "variance_aware", "structure", "combined")


def our_step(method: str, rows: int, d: int) -> Step:
    """Return one step of a method, as `pipeline.align.train` takes it."""
    recipe: Recipe = make_recipe(method, {"dim": d, "normalise_input": "none"})
    image = build_projector("linear", {"d_in": IMAGE_WIDTH, "d": d})
    text = build_projector("linear", {"d_in": TEXT_WIDTH, "d": d})
    stepper = Stepper(recipe, (image, text), torch.device("cpu"))
    batch, moment = Batch(*features(rows)), StepContext(50, 100, torch.Generator(), torch.Generator())
    history, done = History(2000), iter(range(1, 10**9))

    def step() -> None:
        history.add(next(done), 1, 1e-3, stepper.take(batch, moment, 1e-3))

    return step


def matrix_work(rows: int, d: int) -> Step:
    """Return the products of an InfoNCE step: two projections, the logits, and their four gradients."""
    (x, y), (u, w) = features(rows), (torch.randn(rows, d), torch.randn(rows, d))
    image, text = torch.randn(d, IMAGE_WIDTH), torch.randn(d, TEXT_WIDTH)

    def step() -> None:
        logits = u @ w.T
        logits @ w, logits.T @ u
        x @ image.T, y @ text.T
        u.T @ x, w.T @ y

    return step


def cpu_seconds(tasks: Mapping[str, Step], repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each task in each round, after one round that warms up."""
    rounds(tasks, 1)
    return {name: [each.cpu for each in taken] for name, taken in rounds(tasks, repeats).items()}


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def compare_methods(rows: int, d: int, repeats: int) -> None:
    """Print each method's step beside its bare loop."""
    print(f"{rows} rows, d = {d}: ms of ours, of the bare loop of the same maths, and the ratio")
    for method in METHODS:
        found = cpu_seconds({"ours": our_step(method, rows, d), "bare": bare_step(method, rows, d)}, repeats)
        ours, bare = (statistics.median(found[name]) * 1e3 for name in ("ours", "bare"))
        print(f"  {method:15} {ours:8.1f} {bare:8.1f} {ratio(found['ours'], found['bare']):6.2f} ×", flush=True)


def compare_structure(rows: int, d: int, repeats: int) -> None:
    """Print a step with STRUCTURE beside plain ones and their matrix products, and how much memory it adds."""
    plain = our_step("info_nce", rows, d)
    plain()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    regularised = our_step("structure", rows, d)
    regularised()
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    tasks = {
        "structure": regularised,
        "info_nce": plain,
        "bare info_nce": bare_step("info_nce", rows, d),
        "bare structure": bare_step("structure", rows, d),
        "matrix work": matrix_work(rows, d),
    }
    found = cpu_seconds(tasks, repeats)
    term = [a - b for a, b in zip(found["structure"], found["info_nce"], strict=True)]
    print(f"{rows} rows, d = {d}: ms, how often it goes into the structure step, and into the structure term alone")
    for name, values in found.items():
        whole, alone = ratio(found["structure"], values), ratio(term, values)
        print(f"  {name:15} {statistics.median(values) * 1e3:8.0f} {whole:6.2f} × {alone:6.2f} ×", flush=True)
    print(f"  peak memory above the plain step's: {added / 2**20:.0f} MiB = {added / (rows**2 * 4):.1f} N×N")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--structure-rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=20)
    item = parser.parse_args()
    compare_structure(item.structure_rows, item.dim, max(3, item.repeats // 5))
    compare_methods(item.rows, item.dim, item.repeats)


if __name__ == "__main__":
    main()
