"""Images decoded by other workers of a cluster, for an encoder whose own CPUs are too few to keep its GPU busy.

An encoder's worker asks with a few images at a time and waits in a thread: never more are asked for than two a CPU that
decodes, so nothing piles up, and whoever is quick does more. What comes back are the very bytes that this process would
have made: each answer says what made it, and another version of a library anywhere ends the run. A decoder that is lost
is left out until Ray has started it again; its images are asked for again, or made here.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.encoders.base import Encoder, Modality
from pipeline.engines.worker import Failed, Seat
from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.items import Here, Item, Prepared, Preparing

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES_AT_ONCE = 4
"""Images a call: four of 224 × 224 cost about 2 ms to hand over, and 3 ms each or more to decode."""
_CALLS_A_CPU = 2
"""Calls under way for each CPU that decodes: one at work, one that waits or travels."""
_LOOK = 0.2
"""Seconds between two looks whether a decoder is there."""
_PAUSE = 5.0
"""Seconds until a lost decoder is asked again whether it is back."""
_SILENCE = 120.0
"""Seconds without an answer after which a decoder counts as lost, whatever Ray thinks of it."""


class _SilentError(Exception):
    """A decoder does not answer."""


class Hand(NamedTuple):
    """A decoder as an encoder's worker knows it."""

    actor: Any
    calls: int
    """How many calls it takes from this worker at once."""


def hands(decoders: Sequence[tuple[Any, int]], encoders: int) -> list[Hand]:
    """Return the decoders, (actor, CPUs) each, as each of several encoders may use them: by equal shares of all."""
    return [Hand(actor, max(1, _CALLS_A_CPU * cpus // encoders)) for actor, cpus in decoders]


# ---- in the decoder --------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a decoder made of some images."""

    origin: str
    """What made it; see `origin_of`."""
    items: list[tuple[int, "NDArray[Any] | None", str]]
    """(position, array, reason) as in `Prepared`."""


_loading = threading.Lock()


def load(config: ExtractConfig, seat: Seat) -> None:
    """Load the encoder, for what it does before the forward pass."""
    with _loading:
        _loaded(config)


def decode(task: tuple[ExtractConfig, Sequence[Item]], seat: Seat) -> Answer:
    """Make some images ready."""
    config, sources = task
    with _loading:
        encoder, origin = _loaded(config)
    made = Here(1)(encoder, sources)
    return Answer(
        origin, [(item.position, None if item.tensor is None else item.tensor.numpy(), item.reason) for item in made]
    )


@lru_cache(maxsize=1)
def _loaded(config: ExtractConfig) -> tuple[Encoder, str]:
    from pipeline.extract.run import loaded
    from pipeline.runtime import keep_freed_memory

    keep_freed_memory()
    encoder = loaded(replace(config, device="cpu"))
    return encoder, origin_of(encoder)


def origin_of(encoder: Encoder) -> str:
    """Return what an encoder does before the forward pass, and with which versions, as JSON."""
    from pipeline.encoders.custom import own_source
    from pipeline.extract.receipt import versions

    plain = {name: number.partition("+")[0] for name, number in versions().items()}  # 2.13.0+cpu is 2.13.0+cu130 here
    return json.dumps({**encoder.key().preprocessing, **own_source(encoder), **plain}, sort_keys=True)


# ---- in the encoder's worker -----------------------------------------------------------------------------------------


@dataclass
class _Helper:
    """A decoder at work."""

    hand: Hand
    asked: Any = None
    """Its unanswered (or answered) question whether it has loaded the encoder."""
    ready: bool = False
    rests_until: float = 0.0
    calls: int = 0
    """Calls under way."""


@dataclass
class Decoding(Preparing):
    """Makes images ready here and in decoders, texts here.

    Args:
        ray: The module.
        config: What is extracted; the same for all workers.
        workers: Threads that decode here.
        hands: The decoders.
    """

    ray: Any
    config: ExtractConfig
    workers: int
    hands: Sequence[Hand]
    _here: int = 0
    _free: threading.Condition = field(default_factory=threading.Condition)
    _origin: str = ""

    def __post_init__(self) -> None:
        # Which worker asks is nothing to a decoder: one encoder there serves all.
        self._asks = replace(self.config, worker_index=0, num_workers=1, workers=None)
        self._local = Here(self.workers)
        self._helpers = [_Helper(hand) for hand in self.hands]

    def threads(self, modality: Modality) -> int:
        """Return the threads that decode here, and one for each call that may be under way."""
        others = sum(hand.calls for hand in self.hands) if modality == "image" else 0
        return self.workers + others

    def at_once(self, modality: Modality) -> int:
        """Return some images, or as many texts as without decoders."""
        return IMAGES_AT_ONCE if modality == "image" else self._local.at_once(modality)

    def __call__(self, encoder: Encoder, sources: Sequence[Item]) -> list[Prepared]:
        """Make them ready wherever there is room first."""
        if encoder.modality != "image":
            return self._local(encoder, sources)
        while True:
            helper = self._seat()
            try:
                if helper is None:
                    return self._local(encoder, sources)
                return self._asked(helper, encoder, sources)
            except (self.ray.exceptions.RayError, _SilentError):
                self._lost(helper)
            finally:
                self._leave(helper)

    def _asked(self, helper: _Helper, encoder: Encoder, sources: Sequence[Item]) -> list[Prepared]:
        import torch

        asked = helper.hand.actor.run.remote(decode, (self._asks, sources))
        if not self.ray.wait([asked], timeout=_SILENCE)[0]:
            raise _SilentError
        answer: Answer = _result(self.ray.get(asked))
        with self._free:
            self._origin = self._origin or origin_of(encoder)
        if answer.origin != self._origin:
            raise _unlike(self._origin, answer.origin)
        return [
            Prepared(position, None if array is None else torch.from_numpy(array.copy()), reason)
            for position, array, reason in answer.items
        ]

    # ---- room --------------------------------------------------------------------------------------------------------

    def _seat(self) -> _Helper | None:
        """Wait for room, and return the decoder that has it; None for room here."""
        with self._free:
            while True:
                if self._here < self.workers:
                    self._here += 1
                    return None
                for helper in sorted(self._helpers, key=lambda each: each.calls / each.hand.calls):
                    if helper.calls < helper.hand.calls and self._is_ready(helper):
                        helper.calls += 1
                        return helper
                self._free.wait(_LOOK)

    def _leave(self, helper: _Helper | None) -> None:
        with self._free:
            if helper is None:
                self._here -= 1
            else:
                helper.calls -= 1
            self._free.notify()

    def _is_ready(self, helper: _Helper) -> bool:
        if helper.ready or time.monotonic() < helper.rests_until:
            return helper.ready
        if helper.asked is None:
            helper.asked = helper.hand.actor.run.remote(load, self._asks)
        answered, _ = self.ray.wait([helper.asked], timeout=0)
        if answered:
            question, helper.asked = helper.asked, None
            try:
                _result(self.ray.get(question))
            except self.ray.exceptions.RayError:
                helper.rests_until = time.monotonic() + _PAUSE
            else:
                helper.ready = True
        return helper.ready

    def _lost(self, helper: _Helper | None) -> None:
        if helper is not None:
            with self._free:
                helper.ready, helper.rests_until = False, time.monotonic() + _PAUSE


def _result(answer: Any) -> Any:
    if isinstance(answer, Failed):
        raise answer.error
    return answer.result


def _unlike(own: str, other: str) -> PipelineError:
    here, there = json.loads(own), json.loads(other)
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    return PipelineError(
        expected=f"the same {', '.join(names)} on every node ({', '.join(str(here.get(name)) for name in names)})",
        found=", ".join(str(there.get(name)) for name in names),
        where="--engine ray",
        remedy="install the same versions everywhere, or decode beside the encoders alone (--decode-cpus 0)",
    )
