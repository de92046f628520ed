"""One cell from beginning to end; what worker processes run. Returns small things, writes the rest.

done = do_cell(Task(config, cell, digest))
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.align.layer_choice import ChosenLayers
from pipeline.align.resume import save_seed
from pipeline.align.run import record_of
from pipeline.align.train import Trained
from pipeline.errors import PipelineError
from pipeline.projectors.run_record import AlignedRun
from pipeline.study.bench import Made, Workbench
from pipeline.study.cells import Cell
from pipeline.study.config import SweepConfig
from pipeline.study.measure import measure
from pipeline.study.results import Result, save_cell

CURVE = 40  # points of a λ(t) that are kept


class Task(NamedTuple):
    """A cell to do; None instead of a cell means: choose the layers that this cell's neighbours need."""

    config: SweepConfig
    cell: Cell
    digest: str
    layers_only: bool = False


class Done(NamedTuple):
    """How it went."""

    result: Result | None
    """What was saved; None where only layers were chosen, or it failed."""
    problem: str = ""
    """Why it failed, a sentence."""


_bench: Workbench | None = None


def do_cell(task: Task) -> Done:
    """Make a cell's projectors, measure them, save the result; a foreseen failure is told, not raised."""
    try:
        bench = _workbench(task.config)
        if task.layers_only:
            bench.layers(task.cell)
            return Done(None)
        return Done(_do(bench, task))
    except PipelineError as error:
        return Done(None, error.sentence())
    except (RuntimeError, ValueError, ArithmeticError) as error:  # one cell of a thousand must not stop the rest
        return Done(None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _workbench(config: SweepConfig) -> Workbench:
    global _bench
    if _bench is None or _bench.config != config:
        _bench = None  # the old one's memory goes first
        _bench = Workbench(config)
    return _bench


def _do(bench: Workbench, task: Task) -> Result:
    layers = bench.layers(task.cell)
    bench.features(layers).prefetch()
    wall, cpu = time.perf_counter(), time.process_time()
    made = bench.make(task.cell)
    fitted = time.perf_counter(), time.process_time()
    metrics, ranks = measure(bench, made)
    measured = time.perf_counter(), time.process_time()
    result = {
        "digest": task.digest,
        "method": bench.config.methods[task.cell.row].method,
        "layers": bench.labels(layers),
        "validation": made.trained.validation,
        "test": _finite(metrics),
        "seconds": {
            "fit": round(fitted[0] - wall, 4),
            "fit_cpu": round(fitted[1] - cpu, 4),
            "measure": round(measured[0] - fitted[0], 4),
            "measure_cpu": round(measured[1] - fitted[1], 4),
        },
        **_training(made.trained),
    }
    if bench.config.keep:
        _keep(bench, made, task)
    save_cell(task.config.out, task.cell, result, ranks)
    return result | {"cell": dataclasses.asdict(task.cell), "ranks": sorted(ranks)}


def _keep(bench: Workbench, made: Made, task: Task) -> None:
    """Write the cell as a run of one seed, which `evaluate` and `search` take."""
    out = task.config.out / "runs" / task.cell.name
    config = dataclasses.replace(task.cell.config(task.config), out=out, seeds=(task.cell.seed,))
    (out / "run.json").unlink(missing_ok=True)
    seed = save_seed(out, task.cell.seed, task.digest, made.trained)
    AlignedRun.write(out, record_of(config, bench.sides, ChosenLayers(*made.layers, None), bench.splits, [seed]))


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _training(trained: Trained) -> dict[str, Any]:
    """Return steps, temperature, the ridge that was chosen, and how the weight of image→text went."""
    weights = [(row["step"], row["lambda_i2t"]) for row in trained.history if "lambda_i2t" in row]
    moved = any(weight != weights[0][1] for _, weight in weights)
    ridges = [row["ridge"] for row in trained.history if "ridge" in row]
    return {
        "steps": trained.steps,
        "temperature": trained.temperature,
        "temperature_source": trained.temperature_source,
        "ridge": ridges[-1] if ridges else None,
        "lambda_first": weights[0][1] if weights else None,
        "lambda_last": weights[-1][1] if weights else None,
        "lambda_i2t": _thinned(weights) if moved else [],
    }


def _thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    step = max(1, len(points) // CURVE)
    return [[float(at), round(value, 5)] for at, value in points[::step]]
