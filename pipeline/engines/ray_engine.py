"""The engine `ray`: encoders on the GPUs or CPUs of a cluster, or small runs on its CPUs. Connects when work is there.

Encoders and small runs are tasks of Ray, which does a task again, wherever there is room, if its worker is lost. Every
encoder commits shards to the one store itself, so all nodes and this machine need the same folders, and what is
committed stays: killed anywhere, with or without Ray, the next run goes on.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import pipeline
from pipeline.engines import Engine, Item, Result
from pipeline.engines.cluster import (
    Bundle,
    adopt,
    connect,
    extraction_bundles,
    live_nodes,
    load_ray,
    options_of,
    origin_here,
    queue_here,
    result_of,
    run_bundles,
)
from pipeline.engines.decoding import Decoding, calls_at_once, start_decoder
from pipeline.errors import PipelineError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import ExtractResult, extract, finished, make_room
from pipeline.progress import Meter, Progress, Update, say, silent

_RETRIES = 3
"""Times that work is done again whose worker was lost."""
_POLL = 0.5
"""Seconds between two looks at what workers tell."""
_PATIENCE = 30.0
"""Seconds without news of any worker before that is said."""
_GRACE = 30.0
"""Seconds that encoders have to see that their store is complete, once one has seen it."""


class RayEngine(Engine):
    """Works on a Ray cluster.

    Args:
        address: See `pipeline.engines.cluster.connect`.
        device: What small runs compute on: auto or cuda give each a GPU where there are any, cpu gives them none.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str | None = None, device: str = "cpu") -> None:
        load_ray()
        self._address, self._device = address, device

    @cached_property
    def _ray(self) -> Any:
        return connect(self._address)

    def close(self) -> None:
        """Leave the cluster, if it was needed."""
        if "_ray" in vars(self):
            self._ray.shutdown()

    def jobs(self, asked: int | None) -> int:
        """Return the number asked for, else how many fit on the cluster."""
        return asked or len(run_bundles(live_nodes(self._ray), self._device))

    # ---- extraction --------------------------------------------------------------------------------------------------

    def extract(self, config: ExtractConfig, progress: Progress = silent) -> ExtractResult:
        """Extract with one encoder a bundle; where nothing is left to do, Ray is not even started.

        Raises:
            UserError: As `pipeline.extract.run.extract`, or there is no cluster or no room on it.
            PipelineError: As `extract`, or workers died too often.
        """
        start = time.perf_counter()
        result = finished(config) or self._extracted(config, progress)
        return replace(result, seconds=time.perf_counter() - start)

    def _extracted(self, config: ExtractConfig, progress: Progress) -> ExtractResult:
        bundles, spare = extraction_bundles(live_nodes(self._ray), config.device, config.workers, config.decode_cpus)
        if config.device == "auto":  # every encoder the same: other arithmetic would be another key's
            config = replace(config, device="cuda" if bundles[0].gpus else "cpu")
        if config.dry_run:
            (result,) = self._encoded(bundles[:1], config, {}, progress)
            return _divided(result, len(bundles))
        if config.replace:  # by one alone: no encoder must throw away what another has begun
            self._result(self._submit(bundles[0], make_room, config))
            config = replace(config, replace=False)
        decoders = {start_decoder(self._ray, bundle): calls_at_once(bundle.cpus, len(bundles)) for bundle in spare}
        try:
            return _joined(self._encoded(bundles, config, decoders, progress))
        finally:
            for decoder in decoders:
                self._ray.kill(decoder)

    def _encoded(
        self, bundles: Sequence[Bundle], config: ExtractConfig, decoders: Mapping[Any, int], progress: Progress
    ) -> list[ExtractResult]:
        """Run the encoders; once one has seen that the store is complete, the others see it soon or are not needed."""
        ray, queue, total = self._ray, queue_here(self._ray), Total(progress)
        configs = [replace(config, worker_index=index, num_workers=len(bundles)) for index in range(len(bundles))]
        calls = [
            self._submit(bundle, extract_store, each, bundle.cpus, decoders, queue)
            for bundle, each in zip(bundles, configs, strict=True)
        ]
        start = time.monotonic()
        ended: list[Any] = []
        others = calls
        while not ended:
            ended, others = ray.wait(calls, timeout=_POLL)
            total.hear(queue)
            if total.speaker is None and time.monotonic() - start > _PATIENCE:
                say(progress, "No news of any worker yet: it loads its encoder, or waits for room (`ray status`).")
                start = time.monotonic()
        first = self._result(ended[0])
        ended, _ = ray.wait(others, num_returns=len(others), timeout=_GRACE) if others else ([], [])
        total.hear(queue)
        return [first, *map(self._result, ended)]

    # ---- small runs --------------------------------------------------------------------------------------------------

    def side_by_side(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        jobs: int,
        on_done: Callable[[int, Result], None] = lambda position, result: None,
    ) -> list[Result]:
        """Do the items, at most `jobs` at once, each with one thread, and with a GPU where there are any to take."""
        if jobs < 1:
            raise UserError(expected="jobs of 1 or more", found=str(jobs))
        if not items:
            return []
        bundle = run_bundles(live_nodes(self._ray), self._device)[0]
        waiting, at_work, results = deque(enumerate(items)), dict[Any, int](), dict[int, Result]()
        while waiting or at_work:
            while waiting and len(at_work) < jobs:
                position, item = waiting.popleft()
                at_work[self._submit(bundle, work, item, threads=1)] = position
            (call,), _ = self._ray.wait(list(at_work))
            position = at_work.pop(call)
            results[position] = self._result(call)
            on_done(position, results[position])
        return [results[position] for position in range(len(items))]

    # ---- tasks -------------------------------------------------------------------------------------------------------

    @cached_property
    def _tasks(self) -> dict[bool, Any]:
        """Ray's task, by whether its process does another one afterwards."""
        return {
            again: self._ray.remote(max_retries=_RETRIES, max_calls=0 if again else 1)(run) for again in (True, False)
        }

    def _submit(self, bundle: Bundle, work: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
        task = self._tasks[threads is not None].options(name=work.__name__, **options_of(self._ray, bundle))
        return task.remote(origin_here(bundle.cpus, threads), pipeline.__version__, work, *arguments)

    def _result(self, call: Any) -> Any:
        try:
            return result_of(self._ray, call)
        except self._ray.exceptions.RayError as error:
            raise _given_up(error) from error


# ---- in a worker -----------------------------------------------------------------------------------------------------


def run(origin: tuple[str, dict[str, str]], version: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do some work as the process that asks for it would.

    Raises:
        UserError: This node has another version of this package.
    """
    if version != pipeline.__version__:
        expected, remedy = f"fewpairs {version} on every node", "install the same version everywhere"
        raise UserError(expected=expected, found=pipeline.__version__, where="--engine ray", remedy=remedy)
    adopt(*origin)
    return work(*arguments)


def extract_store(config: ExtractConfig, threads: int, decoders: Mapping[Any, int], queue: Any) -> ExtractResult:
    """Extract as one of several.

    Args:
        config: What to extract, and which of several workers this is.
        threads: Threads that decode where the settings name no number.
        decoders: Decoders that help, and how many calls each takes from this worker at once.
        queue: Takes (worker's number, id of this process, update).
    """
    ray = load_ray()
    process = ray.get_runtime_context().get_worker_id()
    threads = config.workers or threads

    def tell(update: Update) -> None:
        with suppress(ray.exceptions.RayError):
            queue.put_nowait((config.worker_index, process, update))

    preparing = Decoding(ray, config, threads, decoders) if decoders else None
    return extract(replace(config, workers=threads), tell, preparing)


# ---- what workers tell and give --------------------------------------------------------------------------------------


class Total:
    """Adds up the rows that the workers on one store tell, and passes on what the first of them that is heard says.

    What a lost worker had not committed is counted again by whoever does it again; the sum is cut at the total.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._meters: dict[str, Meter] = {}
        self._own: dict[tuple[str, str], int] = {}
        self.speaker: int | None = None
        """Number of the worker that was heard first."""

    def hear(self, queue: Any) -> None:
        """Take what lies in a queue of Ray."""
        for news in queue.get_nowait_batch(queue.qsize()):
            self.tell(*news)

    def tell(self, worker: int, process: str, update: Update) -> None:
        """Take an update of a worker; its number outlives its process, which counts from what it found at first."""
        self.speaker = worker if self.speaker is None else self.speaker
        if update.message:
            if worker == self.speaker:
                self._progress(update)
            return
        own = update.done - update.others
        if update.what not in self._meters:
            self._meters[update.what] = Meter(self._progress, update.what, update.total, update.done)
        self._meters[update.what].advance(own - self._own.get((update.what, process), own))
        self._own[update.what, process] = own


def _divided(result: ExtractResult, workers: int) -> ExtractResult:
    """Return a dry run's result with its time divided among workers."""
    cost, classes = result.cost, result.classes
    if cost is not None and cost.seconds is not None:
        cost = replace(cost, seconds=cost.seconds / workers)
    return replace(result, cost=cost, classes=_divided(classes, workers) if classes else None)


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


def _given_up(error: Exception) -> PipelineError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return PipelineError(
        expected="workers that live",
        found=f"{_RETRIES + 1} that died: {lines[-1] if lines else type(error).__name__}",
        where="--engine ray",
        remedy="where memory ran out use fewer or larger workers (--workers, --jobs); what was finished stays",
    )
