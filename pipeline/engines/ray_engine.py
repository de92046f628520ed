"""The engine `ray`: encoders on the GPUs or CPUs of a cluster, or small runs on its CPUs. Connects when work is there.

Encoders and small runs are tasks of Ray, which does a task again, wherever there is room, if its worker is lost. Every
encoder commits shards to the one store itself, so all nodes and this machine need the same folders, and what is
committed stays: killed anywhere, with or without Ray, the next run goes on.

Decoders are actors that make images ready for encoders whose own CPUs are too few to keep a GPU busy. An encoder's
worker asks with a few images at a time and waits in a thread: never more are asked for than two a CPU that decodes, so
nothing piles up, and whoever is quick does more. What comes back are the very bytes that the encoder's process would
have made: each answer says what made it, and another version of a library anywhere ends the run. What a lost decoder
was at is made elsewhere; Ray starts it again, and it is asked again once it has answered.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from queue import SimpleQueue
from typing import Any

import pipeline
from pipeline.encoders.base import Encoder, Modality
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
from pipeline.errors import PipelineError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.items import Item as Sample
from pipeline.extract.items import Prepared, Preparing
from pipeline.extract.run import ExtractResult, extract, finished, loaded, make_room
from pipeline.progress import Meter, Progress, Update, say, silent
from pipeline.runtime import keep_freed_memory

_RETRIES = 3
"""Times that work is done again whose worker was lost."""
_POLL = 0.5
"""Seconds between two looks at what workers tell."""
_PATIENCE = 30.0
"""Seconds without news of any worker before that is said."""
_GRACE = 30.0
"""Seconds that encoders have to see that their store is complete, once one has seen it."""
IMAGES_AT_ONCE = 4
"""Images a call: four of 224 × 224 cost about 2 ms to hand over, and 3 ms each or more to decode."""
_CALLS_A_CPU = 2
"""Calls under way for each CPU that decodes: one at work, one that waits or travels."""
_SILENCE = 120.0
"""Seconds without an answer after which a decoder counts as lost, whatever Ray thinks of it."""


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
        decoders = {start_decoder(self._ray, each, config): calls_at_once(each.cpus, len(bundles)) for each in spare}
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
        calls = []
        for index, bundle in enumerate(bundles):
            threads = config.workers or bundle.cpus
            own = replace(config, worker_index=index, num_workers=len(bundles), workers=threads)
            calls.append(self._submit(bundle, extract_store, own, decoders, queue))
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
        waiting, at_work, results = enumerate(items), dict[Any, int](), dict[int, Result]()
        while len(results) < len(items):
            for position, item in islice(waiting, jobs - len(at_work)):
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
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise PipelineError(
                expected="workers that live",
                found=f"{_RETRIES + 1} that died: {lines[-1] if lines else type(error).__name__}",
                where="--engine ray",
                remedy="where memory ran out use fewer or larger workers (--workers, --jobs); what was finished stays",
            ) from error


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


def extract_store(config: ExtractConfig, decoders: Mapping[Any, int], queue: Any) -> ExtractResult:
    """Extract as one of several.

    Args:
        config: What to extract, and which of several workers this is.
        decoders: Decoders that help, and how many calls each takes from this worker at once.
        queue: Takes (worker's number, id of this process, update).
    """
    ray = load_ray()
    process = ray.get_runtime_context().get_worker_id()

    def tell(update: Update) -> None:
        with suppress(ray.exceptions.RayError):
            queue.put_nowait((config.worker_index, process, update))

    return extract(config, tell, Decoding(ray, config.threads, decoders) if decoders else None)


# ---- decoders --------------------------------------------------------------------------------------------------------


class Decoder:
    """Makes images ready; an actor of Ray, whose methods several threads call."""

    def __init__(self, origin: tuple[str, dict[str, str]], config: ExtractConfig) -> None:
        adopt(*origin)
        self._config, self._loading = config, threading.Lock()
        self._loaded: tuple[Encoder, dict[str, Any]] | None = None

    def decode(self, items: Sequence[Sample]) -> tuple[dict[str, Any], list[tuple[int, Any, str]]]:
        """Make some images ready; the first call loads the encoder, for what it does before the forward pass.

        Returns:
            What made them (see `fingerprint`), and (position, array or None, reason) of each, as in `Prepared`.
        """
        with self._loading:
            if self._loaded is None:
                keep_freed_memory()
                encoder = loaded(replace(self._config, device="cpu"))
                self._loaded = encoder, fingerprint(encoder)
        encoder, made_by = self._loaded
        made = Preparing(1)(encoder, items)
        arrays = [None if item.tensor is None else item.tensor.numpy() for item in made]
        return made_by, [(item.position, array, item.reason) for item, array in zip(made, arrays, strict=True)]


def calls_at_once(cpus: int, encoders: int) -> int:
    """Return how many calls a decoder takes at once from each of several encoders, which share it equally."""
    return max(1, _CALLS_A_CPU * cpus // encoders)


def start_decoder(ray: Any, bundle: Bundle, config: ExtractConfig) -> Any:
    """Return the actor of a new decoder, which Ray starts again each time that it is lost."""
    actor = ray.remote(max_concurrency=bundle.cpus, max_restarts=-1, **options_of(ray, bundle))(Decoder)
    return actor.remote(origin_here(bundle.cpus), config)


def fingerprint(encoder: Encoder) -> dict[str, Any]:
    """Return what an encoder does before the forward pass, and with which versions."""
    from pipeline.encoders.load import own_source
    from pipeline.extract.receipt import versions

    plain = {name: number.partition("+")[0] for name, number in versions().items()}  # 2.13.0+cpu is 2.13.0+cu130 here
    return {**encoder.key().preprocessing, **own_source(encoder), **plain}


class Decoding(Preparing):
    """Makes images ready here and in decoders, texts here.

    Args:
        ray: The module.
        workers: Threads that decode here.
        decoders: The decoders, and how many calls each takes from this process at once.
    """

    def __init__(self, ray: Any, workers: int, decoders: Mapping[Any, int]) -> None:
        super().__init__(workers)
        self._ray, self._calls = ray, sum(decoders.values())
        self._fingerprint: dict[str, Any] = {}
        self._room: SimpleQueue[Any] = SimpleQueue()
        """Who could take a call now: decoders, None for this process."""
        for _ in range(workers):
            self._room.put(None)
        for decoder, calls in decoders.items():
            for _ in range(calls):
                self._open(decoder)

    def threads(self, modality: Modality) -> int:
        """Return the threads that decode here, and one for each call that may be under way."""
        return super().threads(modality) + (self._calls if modality == "image" else 0)

    def at_once(self, modality: Modality) -> int:
        """Return some images, or as many texts as without decoders."""
        return IMAGES_AT_ONCE if modality == "image" else super().at_once(modality)

    def __call__(self, encoder: Encoder, items: Sequence[Sample]) -> list[Prepared]:
        """Make them ready wherever there is room first."""
        while encoder.modality == "image":
            decoder = self._room.get()
            leave: Callable[[Any], None] = self._room.put
            try:
                return self._asked(decoder, encoder, items) if decoder else super().__call__(encoder, items)
            except self._ray.exceptions.RayError:
                leave = self._open
            finally:
                leave(decoder)
        return super().__call__(encoder, items)

    def _open(self, decoder: Any) -> None:
        """Make room for a call at a decoder as soon as it answers that it has loaded the encoder, or why it cannot."""

        def answered(future: Any) -> None:
            error = future.exception()
            if error is None or isinstance(error, self._ray.exceptions.RayTaskError):
                self._room.put(decoder)

        decoder.decode.options(max_task_retries=-1).remote([]).future().add_done_callback(answered)

    def _asked(self, decoder: Any, encoder: Encoder, items: Sequence[Sample]) -> list[Prepared]:
        import torch

        there, made = result_of(self._ray, decoder.decode.remote(items), _SILENCE)
        here = self._fingerprint = self._fingerprint or fingerprint(encoder)
        if there != here:
            names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
            own, others = (", ".join(str(each.get(name)) for name in names) for each in (here, there))
            raise PipelineError(
                expected=f"the same {', '.join(names)} on every node ({own})",
                found=others,
                where="--engine ray",
                remedy="install the same versions everywhere, or decode beside the encoders alone (--decode-cpus 0)",
            )
        return [
            Prepared(position, None if array is None else torch.from_numpy(array.copy()), reason)
            for position, array, reason in made
        ]


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
