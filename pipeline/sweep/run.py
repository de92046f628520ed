"""A sweep: every combination of method, pairs, captions, layers and seed, each aligned and measured.

results = sweep(SweepConfig(...), jobs=2, progress=print)

Killed anywhere, the next call goes on: a cell is finished when its file says so with the same digest of settings,
features and code.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.align.fit import Trained
from pipeline.align.layer_choice import ChosenLayers
from pipeline.align.run import record_of, save_seed
from pipeline.align.train import planned_steps
from pipeline.errors import PipelineError
from pipeline.files import one_line
from pipeline.parallel import SideBySide, run_side_by_side
from pipeline.progress import Progress, Update, say, silent
from pipeline.projectors.run_record import AlignedRun
from pipeline.sweep.bench import SCORED, AlignedCell, Workbench, measure, takes_work
from pipeline.sweep.cells import (
    Cell,
    Digests,
    Result,
    cells_of,
    finished_cell,
    flat_row,
    save_cell,
    save_queries,
    write_tables,
)
from pipeline.sweep.config import SweepConfig
from pipeline.words import duration

CURVE = 40  # points of a λ(t) that are kept

# What `_expected_seconds` counts with, of one machine.
FLOPS = 4e10
"""Multiplications a second of one core in a product of matrices."""
STEP = 1.5e-3
"""Seconds of a training step that are not products of matrices."""
EARLY = 0.45
"""Share of the planned steps after which training stops, as a rule."""
HUBS = 2.5e-3
"""Seconds of the hubness correction for each image of its bank."""
MLP = 11.0
"""Cost of a perceptron's products against a linear map's."""


@dataclass(frozen=True)
class Worklist:
    """What a sweep has to do."""

    cells: list[Cell]
    """All cells."""
    digests: dict[Cell, str]
    """The digest of each."""
    finished: dict[Cell, Result]
    """Results of earlier runs that still count."""
    costs: dict[Cell, float]
    """Expected core-seconds of each."""

    @property
    def left(self) -> list[Cell]:
        """Cells to do."""
        return [cell for cell in self.cells if cell not in self.finished]

    def sentence(self, jobs: int) -> str:
        """Say what there is to do and how long it may take."""
        if not self.left:
            return f"All {len(self.cells)} cells are finished."
        reused = f", {len(self.finished)} are finished already" if self.finished else ""
        seconds = sum(self.costs[cell] for cell in self.left)
        return (
            f"{len(self.cells)} cells{reused}; {len(self.left)} to do, about {duration(seconds)} of one core "
            f"({duration(seconds / jobs)} with {jobs} at once)."
        )


def worklist(config: SweepConfig, bench: Workbench | None = None) -> Worklist:
    """Look at stores and finished cells; nothing is computed.

    Args:
        config: What to vary.
        bench: Its workbench, where there is one already.

    Raises:
        UserError: A store cannot be used, there are fewer images than asked, or a setting is impossible.
    """
    bench = bench or Workbench(config)
    cells = cells_of(config)
    for cell in {(each.pairs, each.captions): each for each in cells}.values():
        bench.drawn(cell)  # refuses more images than there are
    for expression, cell in {each.config(config).layer_expression: each for each in cells}.items():
        if not takes_work(expression):
            bench.layers(cell)  # refuses names that no store holds
    digests = Digests(config, bench.sides)
    by_cell = {cell: digests.of(cell) for cell in cells}
    found = {cell: finished_cell(config.out, cell, by_cell[cell]) for cell in cells}
    return Worklist(
        cells=cells,
        digests=by_cell,
        finished={cell: result for cell, result in found.items() if result is not None},
        costs={cell: _expected_seconds(bench, cell) for cell in cells},
    )


def _expected_seconds(bench: Workbench, cell: Cell) -> float:
    """Return what a cell will cost on one core: for the dry run, and for the bar that says how long it will take.

    Rough on purpose: closed forms solve for widths, training multiplies batches, and all measure the test pairs. As
    cells end, the rest is scaled by what they really took.
    """
    align = cell.config(bench.config)
    recipe, train = align.recipe(), bench.splits.train
    images, captions = min(cell.pairs or len(train), len(train)), len(train.caption_rows) / len(train)
    wider = {"stack": align.stack, "pair": 1}.get(
        align.layer_expression, 1.5 if takes_work(align.layer_expression) else 1
    )
    width = wider * sum(store.layers[-1].width for side in bench.sides for store in side.stores)
    dim = 4 * images if recipe.algorithm == "asif" else recipe.dim
    checked = min(len(bench.splits.validation), recipe.training.validation_images)
    check = 0.01 + checked * (1 + captions) * (width / 2 + checked) * dim / FLOPS
    tested = (0, 0) if bench.test is None else (len(bench.test.pairs.image_rows), len(bench.test.pairs.caption_rows))
    seconds = 0.25 + (sum(tested) * width / 2 + tested[0] * tested[1]) * dim / FLOPS + 2 * check
    if not recipe.trained or recipe.start != "random":
        pairs = images * min(cell.captions or captions, captions)
        seconds += (pairs * width**2 / 2 + 3 * width**3) / FLOPS
    if recipe.trained:
        batch = min(recipe.training.batch_size, images)
        maps = 3 * batch * width * recipe.dim * (MLP if "residual_mlp" in recipe.projectors else 1)
        pairs = batch**2 * (3 * recipe.dim + (4 * width if recipe.structure.weight else 0))
        step = STEP + (maps + pairs) / FLOPS + 12 * batch**2 * 1e-9
        seconds += EARLY * (planned_steps(images, recipe.training) * step + recipe.training.validations * check)
    return seconds + (HUBS * min(images, recipe.hubness.bank) if recipe.hubness.neighbours else 0)


def sweep(
    config: SweepConfig,
    *,
    jobs: int = 1,
    progress: Progress = silent,
    tables: bool = True,
    side_by_side: SideBySide = run_side_by_side,
) -> list[Result]:
    """Do every cell that is not finished and write the tables; return the results in the order of the cells.

    Args:
        config: What to vary.
        jobs: Worker processes with one thread each; the number changes no digit.
        progress: Gets a sentence of what there is to do, then the number of finished cells.
        tables: Whether results.csv, .json and .parquet are written.
        side_by_side: What does the cells.

    Raises:
        UserError: As `worklist`.
        PipelineError: Cells failed; the rest is done and saved.
    """
    bench = Workbench(config)
    work = worklist(config, bench)
    say(progress, f"{config.out.name}: {work.sentence(jobs)}")
    config.out.mkdir(parents=True, exist_ok=True)
    if bench.test is not None:
        save_queries(config.out, bench.test, bench.class_sets)
    results = dict(work.finished)
    problems: list[str] = []
    if work.left:
        _choose_layers(config, work.left, jobs, side_by_side)
        new, problems = _do_cells(config, work, jobs, progress, side_by_side)
        results |= new
    done = [results[cell] for cell in work.cells if cell in results]
    if tables:
        write_tables(config.out, [flat_row(result) for result in done])
    if problems:
        raise PipelineError(
            expected="cells that can be made",
            found=f"{len(problems)} of {len(work.cells)} that cannot: {problems[0]}",
            where=str(config.out),
            remedy="the others are done and saved; leave the method out or give it more pairs",
        )
    return done


class Task(NamedTuple):
    """What a worker is asked for."""

    config: SweepConfig
    cell: Cell
    digest: str
    """What the cell depends on."""
    layers_only: bool = False
    """Choose the cell's layers and no more."""


class Done(NamedTuple):
    """What a worker says."""

    result: Result | None
    """The cell's numbers; None where it failed, or where only layers were asked for."""
    problem: str = ""
    """Why it failed."""


def _choose_layers(config: SweepConfig, left: Sequence[Cell], jobs: int, side_by_side: SideBySide) -> None:
    """Score layers once for all methods, before cells that share them start side by side."""
    wanted = {cell: cell.config(config).layer_expression for cell in left}
    kinds = {
        (cell.pairs, cell.captions, cell.swapped, "" if expression in SCORED else expression): cell
        for cell, expression in wanted.items()
        if takes_work(expression)
    }
    tasks = [Task(config, cell, "", layers_only=True) for cell in kinds.values()]
    failed = [done.problem for done in side_by_side(do_cell, tasks, jobs=jobs) if done.problem]
    if failed:
        raise PipelineError(expected="layers that can be compared", found=failed[0], where=str(config.out))


def _do_cells(
    config: SweepConfig, work: Worklist, jobs: int, progress: Progress, side_by_side: SideBySide
) -> tuple[dict[Cell, Result], list[str]]:
    left, problems = work.left, list[str]()
    found: dict[Cell, Result] = {}
    costs = [work.costs[cell] for cell in left]
    start, ended = time.monotonic(), set[int]()

    def count(position: int, done: Done) -> None:
        cell = left[position]
        if done.result is None:
            problems.append(f"{cell.name}: {done.problem}")
        else:
            found[cell] = done.result
        ended.add(position)
        spent = sum(costs[each] for each in ended)
        eta = (sum(costs) - spent) * (time.monotonic() - start) / spent  # costs are rough: scaled by what they took
        progress(Update(what="cells", done=len(work.finished) + len(ended), total=len(work.cells), eta=eta))

    side_by_side(do_cell, [Task(config, cell, work.digests[cell]) for cell in left], jobs=jobs, on_done=count)
    return found, problems


_bench: Workbench | None = None
"""A worker's own, for all its cells of one sweep."""


def do_cell(task: Task) -> Done:
    """Make a cell's projectors, measure them, save the result; a foreseen failure is told, not raised."""
    try:
        bench = _workbench(task.config)
        if task.layers_only:
            bench.layers(task.cell)
            return Done(None)
        return Done(_result(bench, task))
    except PipelineError as error:
        return Done(None, error.sentence())
    except (RuntimeError, ValueError, ArithmeticError) as error:  # one cell of a thousand must not stop the rest
        return Done(None, f"{type(error).__name__}: {one_line(error)}")


def _workbench(config: SweepConfig) -> Workbench:
    global _bench
    if _bench is None or _bench.config != config:
        _bench = None  # the old one's memory goes first
        _bench = Workbench(config)
    return _bench


def _result(bench: Workbench, task: Task) -> Result:
    layers = bench.layers(task.cell)
    bench.features(layers)  # read before the clock starts
    times = [_times()]
    aligned = bench.align(task.cell)
    times.append(_times())
    metrics, ranks = measure(bench, aligned)
    times.append(_times())
    (fit, fit_cpu), (measured, measured_cpu) = ((after - before).round(4).tolist() for before, after in pairwise(times))
    result = {
        "digest": task.digest,
        "method": bench.config.methods[task.cell.row].method,
        "layers": bench.labels(layers),
        "validation": aligned.trained.validation,
        "test": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "seconds": {"fit": fit, "fit_cpu": fit_cpu, "measure": measured, "measure_cpu": measured_cpu},
        **_training(aligned.trained),
    }
    if bench.config.keep:
        _keep(bench, aligned, task.digest)
    save_cell(bench.config.out, task.cell, result, ranks)
    return result | {"cell": dataclasses.asdict(task.cell), "ranks": sorted(ranks)}


def _times() -> NDArray[np.float64]:
    """Return the wall clock and the CPU time of this process, seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def _keep(bench: Workbench, aligned: AlignedCell, digest: str) -> None:
    """Write the cell as a run of one seed, which `evaluate` and `search` take."""
    cell = aligned.cell
    out = bench.config.out / "runs" / cell.name
    config = dataclasses.replace(cell.config(bench.config), out=out, seeds=(cell.seed,))
    (out / "run.json").unlink(missing_ok=True)
    seed = save_seed(out, cell.seed, digest, aligned.trained)
    AlignedRun.write(out, record_of(config, bench.sides, ChosenLayers(*aligned.layers, None), bench.splits, [seed]))


def _training(trained: Trained) -> dict[str, Any]:
    """Return steps, temperature, the ridge that was chosen, and how the weight of image→text went."""
    weights = [(float(row["step"]), row["lambda_i2t"]) for row in trained.history if "lambda_i2t" in row]
    moved = any(weight != weights[0][1] for _, weight in weights)
    ridges = [row["ridge"] for row in trained.history if "ridge" in row]
    thinned = weights[:: max(1, len(weights) // CURVE)] if moved else []
    return {
        "steps": trained.steps,
        "temperature": trained.temperature,
        "temperature_source": trained.temperature_source,
        "ridge": ridges[-1] if ridges else None,
        "lambda_first": weights[0][1] if weights else None,
        "lambda_last": weights[-1][1] if weights else None,
        "lambda_i2t": [[step, round(weight, 5)] for step, weight in thinned],
    }
