"""The engine `ray`: encoders on the GPUs or CPUs of a cluster, or small runs on its CPUs. Connects when work is there.

with RayEngine("auto") as engine:
    engine.extract(config, report)

Every worker writes shards into the one store itself, so all nodes and this machine need the same folders. Killed
anywhere, with or without Ray, the next run goes on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.engines.base import Engine, Item, Result
from pipeline.engines.cluster import Cluster, load_ray
from pipeline.engines.places import cell_places, encoder_places
from pipeline.engines.pool import Pool
from pipeline.engines.together import Together
from pipeline.engines.worker import Seat
from pipeline.errors import UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.progress import Report, silent
from pipeline.extract.result import ExtractResult


class RayEngine(Engine):
    """Works on a Ray cluster.

    Args:
        address: See `pipeline.engines.cluster.Cluster`.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        load_ray()
        self._address = address

    @cached_property
    def _cluster(self) -> Cluster:
        return Cluster(self._address)

    def close(self) -> None:
        """Leave the cluster, if it was needed."""
        if "_cluster" in vars(self):
            self._cluster.close()

    def jobs(self, said: int | None) -> int:
        """Return what was said, else the CPUs of the cluster."""
        return said or len(cell_places(self._cluster.nodes(), "cpu"))

    def extract(self, config: ExtractConfig, report: Report = silent) -> ExtractResult:
        """Extract with one worker a place; where nothing is left to do, Ray is not even started.

        Raises:
            UserError: As `pipeline.extract.run.extract`, or there is no cluster or no room on it.
            PipelineError: As `extract`, or workers died too often.
        """
        from pipeline.extract.run import finished

        start = time.perf_counter()
        result = finished(config) or self._extracted(config, report)
        return replace(result, seconds=time.perf_counter() - start)

    def _extracted(self, config: ExtractConfig, report: Report) -> ExtractResult:
        places = encoder_places(self._cluster.nodes(), config.device, config.workers)
        if config.device == "auto":  # every worker the same: other arithmetic would be another key's
            config = replace(config, device="cuda" if places[0].gpus else "cpu")
        together = Together(report)

        def work(function: Callable[[Any, Seat], Any], items: Sequence[Any]) -> list[Any]:
            pool = Pool(
                cluster=self._cluster,
                work=function,
                items=items,
                places=places,
                tell=together.tell,
                lost=together.forget,
                say=lambda sentence: report(_sentence(sentence)),
            )
            return pool.run()

        if config.dry_run:
            (result,) = work(_extract, [config])
            return _shared(result, len(places))
        if config.replace:  # by one alone: no worker must throw away what another has begun
            work(_make_room, [config])
            config = replace(config, replace=False)
        return _joined(work(_extract, [config] * len(places)))

    def side_by_side(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        jobs: int,
        on_done: Callable[[int, Result], None] = lambda position, result: None,
    ) -> list[Result]:
        """Do the items on at most `jobs` workers of one thread each."""
        if jobs < 1:
            raise UserError(expected="jobs of 1 or more", found=str(jobs))
        if not items:
            return []
        places = cell_places(self._cluster.nodes(), "cpu")[:jobs]
        tasks = [_Task(work, item) for item in items]
        return Pool(cluster=self._cluster, work=_do, items=tasks, places=places, threads=1, on_done=on_done).run()
