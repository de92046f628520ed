"""Images decoded by other workers of a cluster, for an encoder whose own CPUs are too few to keep its GPU busy.

An encoder's worker asks with a few images at a time and waits in a thread: never more are asked for than two a CPU that
decodes, so nothing piles up, and whoever is quick does more. What comes back are the very bytes that this process would
have made: each answer says what made it, and another version of a library anywhere ends the run. What a lost decoder
was at is made elsewhere; Ray starts it again, and it is asked again once it has answered.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.encoders.base import Encoder, Modality
from pipeline.engines.cluster import Bundle, adopt, options_of, origin_here, result_of
from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.items import Item, Prepared, Preparing

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES_AT_ONCE = 4
"""Images a call: four of 224 × 224 cost about 2 ms to hand over, and 3 ms each or more to decode."""
_CALLS_A_CPU = 2
"""Calls under way for each CPU that decodes: one at work, one that waits or travels."""
_SILENCE = 120.0
"""Seconds without an answer after which a decoder counts as lost, whatever Ray thinks of it."""


def calls_at_once(cpus: int, encoders: int) -> int:
    """Return how many calls a decoder takes at once from each of several encoders, which share it equally."""
    return max(1, _CALLS_A_CPU * cpus // encoders)


# ---- in the decoder --------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a decoder made of some images."""

    fingerprint: str
    """What made it; see `fingerprint`."""
    items: list[tuple[int, "NDArray[Any] | None", str]]
    """(position, array, reason) as in `Prepared`."""


class Decoder:
    """Makes images ready; an actor of Ray, whose methods several threads call."""

    def __init__(self, folder: str, environment: dict[str, str]) -> None:
        adopt(folder, environment)
        self._loading = threading.Lock()

    def load(self, config: ExtractConfig) -> None:
        """Load the encoder, for what it does before the forward pass."""
        with self._loading:
            _loaded(config)

    def decode(self, config: ExtractConfig, items: Sequence[Item]) -> Answer:
        """Make some images ready."""
        with self._loading:
            encoder, made_by = _loaded(config)
        made = Preparing(1)(encoder, items)
        arrays = [None if item.tensor is None else item.tensor.numpy() for item in made]
        return Answer(made_by, [(item.position, array, item.reason) for item, array in zip(made, arrays, strict=True)])


def start_decoder(ray: Any, bundle: Bundle) -> Any:
    """Return the actor of a new decoder, which Ray starts again each time that it is lost."""
    actor = ray.remote(max_concurrency=bundle.cpus, max_restarts=-1, **options_of(ray, bundle))(Decoder)
    return actor.remote(*origin_here(bundle.cpus))


@lru_cache(maxsize=1)
def _loaded(config: ExtractConfig) -> tuple[Encoder, str]:
    from pipeline.extract.run import loaded
    from pipeline.runtime import keep_freed_memory

    keep_freed_memory()
    encoder = loaded(replace(config, device="cpu"))
    return encoder, fingerprint(encoder)


def fingerprint(encoder: Encoder) -> str:
    """Return what an encoder does before the forward pass, and with which versions, as JSON."""
    from pipeline.encoders.load import own_source
    from pipeline.extract.receipt import versions

    plain = {name: number.partition("+")[0] for name, number in versions().items()}  # 2.13.0+cpu is 2.13.0+cu130 here
    return json.dumps({**encoder.key().preprocessing, **own_source(encoder), **plain}, sort_keys=True)


# ---- in the encoder's worker -----------------------------------------------------------------------------------------


class Decoding(Preparing):
    """Makes images ready here and in decoders, texts here.

    Args:
        ray: The module.
        config: What is extracted; the same for all workers.
        threads: Threads that decode here.
        decoders: The decoders, and how many calls each takes from this process at once.
    """

    def __init__(self, ray: Any, config: ExtractConfig, threads: int, decoders: Mapping[Any, int]) -> None:
        self._ray, self._threads, self._decoders = ray, threads, decoders
        self._local = Preparing(threads)
        # Which worker asks is nothing to a decoder: one encoder there serves all.
        self._config = replace(config, worker_index=0, num_workers=1, workers=None)
        self._fingerprint = ""
        self._room: SimpleQueue[Any] = SimpleQueue()
        """Who could take a call now: decoders, None for this process."""
        for _ in range(threads):
            self._room.put(None)
        for decoder, calls in decoders.items():
            for _ in range(calls):
                self._open(decoder)

    def threads(self, modality: Modality) -> int:
        """Return the threads that decode here, and one for each call that may be under way."""
        return self._threads + (sum(self._decoders.values()) if modality == "image" else 0)

    def at_once(self, modality: Modality) -> int:
        """Return some images, or as many texts as without decoders."""
        return IMAGES_AT_ONCE if modality == "image" else self._local.at_once(modality)

    def __call__(self, encoder: Encoder, items: Sequence[Item]) -> list[Prepared]:
        """Make them ready wherever there is room first."""
        if encoder.modality != "image":
            return self._local(encoder, items)
        while True:
            decoder = self._room.get()
            lost = False
            try:
                return self._asked(decoder, encoder, items) if decoder else self._local(encoder, items)
            except self._ray.exceptions.RayError:
                lost = True
            finally:
                if lost:
                    self._open(decoder)
                else:
                    self._room.put(decoder)

    def _open(self, decoder: Any) -> None:
        """Make room for a call at a decoder as soon as it answers that it has loaded the encoder, or why it cannot."""

        def answered(future: Any) -> None:
            error = future.exception()
            if error is None or isinstance(error, self._ray.exceptions.RayTaskError):
                self._room.put(decoder)

        decoder.load.options(max_task_retries=-1).remote(self._config).future().add_done_callback(answered)

    def _asked(self, decoder: Any, encoder: Encoder, items: Sequence[Item]) -> list[Prepared]:
        import torch

        answer: Answer = result_of(self._ray, decoder.decode.remote(self._config, items), _SILENCE)
        self._fingerprint = self._fingerprint or fingerprint(encoder)
        if answer.fingerprint != self._fingerprint:
            raise _unlike(self._fingerprint, answer.fingerprint)
        return [
            Prepared(position, None if array is None else torch.from_numpy(array.copy()), reason)
            for position, array, reason in answer.items
        ]


def _unlike(own: str, other: str) -> PipelineError:
    here, there = json.loads(own), json.loads(other)
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    return PipelineError(
        expected=f"the same {', '.join(names)} on every node ({', '.join(str(here.get(name)) for name in names)})",
        found=", ".join(str(there.get(name)) for name in names),
        where="--engine ray",
        remedy="install the same versions everywhere, or decode beside the encoders alone (--decode-cpus 0)",
    )
