"""The engine `ray`: encoders on the GPUs or CPUs of a cluster, or small runs on its CPUs. Connects when work is there.

with RayEngine("auto") as engine:
    engine.extract(config, progress)

Every worker writes shards into the one store itself, so all nodes and this machine need the same folders. Killed
anywhere, with or without Ray, the next run goes on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.engines.base import Engine, Item, Result
from pipeline.engines.cluster import Cluster, load_ray
from pipeline.engines.decoding import hands
from pipeline.engines.hire import hire
from pipeline.engines.parts import extract_part, make_room, part
from pipeline.engines.places import Place, cell_places, extraction_places
from pipeline.engines.pool import Pool
from pipeline.engines.together import Together
from pipeline.engines.worker import Seat
from pipeline.errors import UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import ExtractResult
from pipeline.progress import Progress, Update, silent


class RayEngine(Engine):
    """Works on a Ray cluster.

    Args:
        address: See `pipeline.engines.cluster.Cluster`.
        device: What small runs compute on: auto or cuda give each a GPU where there are any, cpu gives them none.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str | None = None, device: str = "cpu") -> None:
        load_ray()
        self._address, self._device = address, device

    @cached_property
    def _cluster(self) -> Cluster:
        return Cluster(self._address)

    def close(self) -> None:
        """Leave the cluster, if it was needed."""
        if "_cluster" in vars(self):
            self._cluster.close()

    def jobs(self, said: int | None) -> int:
        """Return what was said, else how many fit on the cluster."""
        return said or len(cell_places(self._cluster.nodes(), self._device))

    def extract(self, config: ExtractConfig, progress: Progress = silent) -> ExtractResult:
        """Extract with one worker a place; where nothing is left to do, Ray is not even started.

        Raises:
            UserError: As `pipeline.extract.run.extract`, or there is no cluster or no room on it.
            PipelineError: As `extract`, or workers died too often.
        """
        from pipeline.extract.run import finished

        start = time.perf_counter()
        result = finished(config) or self._extracted(config, progress)
        return replace(result, seconds=time.perf_counter() - start)

    def _extracted(self, config: ExtractConfig, progress: Progress) -> ExtractResult:
        nodes = self._cluster.nodes()
        places, others = extraction_places(nodes, config.device, config.workers, config.decode_cpus)
        if config.device == "auto":  # every worker the same: other arithmetic would be another key's
            config = replace(config, device="cuda" if places[0].gpus else "cpu")
        together = Together(progress)

        def work(function: Callable[[Any, Seat], Any], items: Sequence[Any]) -> list[Any]:
            pool = Pool(
                cluster=self._cluster,
                work=function,
                items=items,
                places=places,
                one_ends_all=True,  # a worker returns when its store is complete, whoever completed it
                tell=together.tell,
                lost=together.forget,
                say=lambda sentence: progress(_sentence(sentence)),
            )
            return [result for result in pool.run() if result is not None]

        if config.dry_run:
            (result,) = work(extract_part, [part(config)])
            return _shared(result, len(places))
        if config.replace:  # by one alone: no worker must throw away what another has begun
            work(make_room, [part(config)])
            config = replace(config, replace=False)
        count = len(places)
        with self._decoders(others) as decoders:
            share = hands(decoders, count)
            mine = [replace(config, worker_index=index, num_workers=count) for index in range(count)]
            return _joined(work(extract_part, [part(each, share) for each in mine]))

    @contextmanager
    def _decoders(self, places: Sequence[Place]) -> Iterator[list[tuple[Any, int]]]:
        """Hire workers that only decode, (actor, CPUs) each, for as long as the block lasts."""
        ray = self._cluster.ray
        hired = [(hire(ray, place, calls=place.cpus, returns=True), place.cpus) for place in places]
        try:
            yield hired
        finally:
            for actor, _ in hired:
                with suppress(Exception):  # one that is lost already, or a cluster that is
                    ray.kill(actor)

    def side_by_side(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        jobs: int,
        on_done: Callable[[int, Result], None] = lambda position, result: None,
    ) -> list[Result]:
        """Do the items on at most `jobs` workers of one thread each, each with a GPU where there are any to take."""
        if jobs < 1:
            raise UserError(expected="jobs of 1 or more", found=str(jobs))
        if not items:
            return []
        places = cell_places(self._cluster.nodes(), self._device)[:jobs]
        tasks = [_Task(work, item) for item in items]
        return Pool(cluster=self._cluster, work=_do, items=tasks, places=places, threads=1, on_done=on_done).run()


class _Task(NamedTuple):
    """A small run."""

    work: Callable[[Any], Any]
    item: Any


def _do(task: _Task, seat: Seat) -> Any:
    return task.work(task.item)


def _sentence(message: str) -> Update:
    return Update(what="", message=message)


def _shared(result: ExtractResult, workers: int) -> ExtractResult:
    """Return a dry run's result with its time shared among workers."""
    cost, classes = result.cost, result.classes
    if cost is not None and cost.seconds is not None:
        cost = replace(cost, seconds=cost.seconds / workers)
    return replace(result, cost=cost, classes=_shared(classes, workers) if classes else None)


def _joined(results: Sequence[ExtractResult]) -> ExtractResult:
    """Return one result for what several workers did to one store; what a lost worker did counts as found."""
    first = results[0]
    shards = first.computed_shards + first.skipped_shards
    computed = sum(result.computed_shards for result in results)
    classes = [result.classes for result in results if result.classes is not None]
    costs = [result.cost for result in results if result.cost is not None]
    return replace(
        first,
        computed_shards=computed,
        skipped_shards=max(shards - computed, 0),
        cost=max(costs, key=lambda cost: cost.missing_rows, default=None),
        classes=_joined(classes) if classes else None,
    )
