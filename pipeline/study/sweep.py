"""Sweep: every combination of method, pairs, captions, layers and seed, each measured; `pipeline sweep` runs it.

results = sweep(SweepConfig(...), jobs=2, progress=print)

Killed anywhere, the next call goes on: a cell is finished when its file says so with the same digest of settings,
features and code.
"""

from dataclasses import dataclass

from pipeline.align.parallel import SideBySide, run_side_by_side
from pipeline.errors import PipelineError
from pipeline.progress import Progress, say, silent
from pipeline.study.bench import Workbench
from pipeline.study.cells import Cell, Digests, cells_of
from pipeline.study.choice import SCORED, takes_work
from pipeline.study.config import SweepConfig
from pipeline.study.cost import seconds_of, sizes_of
from pipeline.study.progress import CellMeter
from pipeline.study.results import Result, finished_cell, save_queries, write_tables
from pipeline.study.work import Done, Task, do_cell
from pipeline.words import duration


@dataclass(frozen=True)
class Plan:
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

    @property
    def left_seconds(self) -> float:
        """Expected core-seconds of the cells that are left."""
        return sum(self.costs[cell] for cell in self.left)

    def sentence(self, jobs: int) -> str:
        """Say what there is to do and how long it may take."""
        if not self.left:
            return f"All {len(self.cells)} cells are finished."
        reused = f", {len(self.finished)} are finished already" if self.finished else ""
        total = duration(self.left_seconds)
        return (
            f"{len(self.cells)} cells{reused}; {len(self.left)} to do, about {total} of one core "
            f"({duration(self.left_seconds / jobs)} with {jobs} at once)."
        )


def plan(config: SweepConfig) -> Plan:
    """Look at stores and finished cells; nothing is computed.

    Raises:
        UserError: A store cannot be used, there are fewer images than asked, or a setting is impossible.
    """
    return _planned(config, Workbench(config))


def _planned(config: SweepConfig, bench: Workbench) -> Plan:
    cells = cells_of(config)
    for cell in {(each.pairs, each.captions): each for each in cells}.values():
        bench.drawn(cell)  # refuses more images than there are
    for expression, cell in {each.config(config).layer_expression: each for each in cells}.items():
        if not takes_work(expression):
            bench.layers(cell)  # refuses names that no store holds
    digests, sizes = Digests(config, bench.sides), sizes_of(bench)
    all_digests = {cell: digests.of(cell) for cell in cells}
    found = {cell: finished_cell(config.out, cell, all_digests[cell]) for cell in cells}
    return Plan(
        cells=cells,
        digests=all_digests,
        finished={cell: result for cell, result in found.items() if result is not None},
        costs={cell: seconds_of(cell, config, sizes) for cell in cells},
    )


def sweep(
    config: SweepConfig,
    *,
    jobs: int = 1,
    progress: Progress = silent,
    quiet: bool = False,
    tables: bool = True,
    side_by_side: SideBySide = run_side_by_side,
) -> list[Result]:
    """Do every cell that is not finished and write the tables; return the results in the order of the cells.

    Args:
        config: What to vary.
        jobs: Worker processes with one thread each; the number changes no digit.
        progress: Gets a sentence for each thing decided.
        quiet: No bar.
        tables: Whether results.csv, .json and .parquet are written.
        side_by_side: What does the cells.

    Raises:
        UserError: As `plan`.
        PipelineError: Cells failed; the rest is done and saved.
    """
    bench = Workbench(config)
    planned = _planned(config, bench)
    say(progress, f"{config.out.name}: {planned.sentence(jobs)}")
    config.out.mkdir(parents=True, exist_ok=True)
    save_queries(config.out, bench)
    results = dict(planned.finished)
    problems: list[str] = []
    if planned.left:
        _choose_layers(config, planned, jobs, side_by_side)
        new, problems = _work(config, planned, jobs, quiet, side_by_side)
        results |= new
    done = [results[cell] for cell in planned.cells if cell in results]
    if tables:
        write_tables(config.out, done)
    if problems:
        raise PipelineError(
            expected="cells that can be made",
            found=f"{len(problems)} of {len(planned.cells)} that cannot: {problems[0]}",
            where=str(config.out),
            remedy="the others are done and saved; leave the method out or give it more pairs",
        )
    return done


def _choose_layers(config: SweepConfig, planned: Plan, jobs: int, side_by_side: SideBySide) -> None:
    """Score layers once for all methods, before cells that share them start side by side."""
    wanted = {cell: cell.config(config).layer_expression for cell in planned.left}
    kinds = {
        (cell.pairs, cell.captions, cell.swapped, "" if expression in SCORED else expression): cell
        for cell, expression in wanted.items()
        if takes_work(expression)
    }
    tasks = [Task(config, cell, "", layers_only=True) for cell in kinds.values()]
    failed = [done.problem for done in side_by_side(do_cell, tasks, jobs=jobs) if done.problem]
    if failed:
        raise PipelineError(expected="layers that can be compared", found=failed[0], where=str(config.out))


def _work(
    config: SweepConfig, planned: Plan, jobs: int, quiet: bool, side_by_side: SideBySide
) -> tuple[dict[Cell, Result], list[str]]:
    left = planned.left
    tasks = [Task(config, cell, planned.digests[cell]) for cell in left]
    costs = [planned.costs[cell] for cell in left]
    problems: list[str] = []
    found: dict[Cell, Result] = {}
    with CellMeter(costs, min(jobs, len(left)), finished=len(planned.finished), quiet=quiet) as meter:

        def count(position: int, done: Done) -> None:
            cell = left[position]
            if done.result is None:
                problems.append(f"{cell.name}: {done.problem}")
            else:
                found[cell] = done.result
            meter.done(costs[position], cell.name)

        side_by_side(do_cell, tasks, jobs=jobs, on_done=count)
    return found, problems
