"""One item made ready for the encoder, in a worker thread; what is wrong with it becomes its reason."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from pipeline.encoders.base import Encoder, Modality
from pipeline.errors import UserError
from pipeline.extract.items import Source
from pipeline.extract.rejected import RejectedInputError

if TYPE_CHECKING:
    from torch import Tensor

TEXTS_AT_ONCE = 32
"""Texts a thread tokenises in one go."""


@dataclass(frozen=True)
class Prepared:
    """An item that is ready for the encoder, or the reason why it never will be."""

    position: int
    """Which item of the data set."""
    tensor: Optional["Tensor"] = None
    """[3, H, W] or [T]; None if rejected."""
    reason: str = ""
    """Why it was rejected."""


def prepare(encoder: Encoder, source: Source) -> Prepared:
    """Load and prepare one item.

    Raises:
        UserError: The item is not the one that was digested.
    """
    position = source.position
    try:
        sample = source.load(encoder.reduction)
    except RejectedInputError as error:
        return Prepared(position, reason=str(error))
    try:
        return Prepared(position, encoder.prepare(sample))
    except UserError as error:
        return Prepared(position, reason=f"the encoder refuses it: {error.sentence()}")


class Preparing(ABC):
    """Where items are made ready: threads of this process, or with an engine also other machines."""

    @abstractmethod
    def threads(self, modality: Modality) -> int:
        """Return how many threads may call at once."""

    @abstractmethod
    def at_once(self, modality: Modality) -> int:
        """Return how many items a call had best be given."""

    @abstractmethod
    def __call__(self, encoder: Encoder, sources: Sequence[Source]) -> list[Prepared]:
        """Make some items ready, in their order.

        Raises:
            UserError: An item is not the one that was digested.
        """


class Here(Preparing):
    """Makes items ready in the thread that asks.

    Args:
        workers: Threads that may ask.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def threads(self, modality: Modality) -> int:
        """Return the number of workers."""
        return self._workers

    def at_once(self, modality: Modality) -> int:
        """Return one image, or some texts: handing over a single one costs more than tokenising it."""
        return TEXTS_AT_ONCE if modality == "text" else 1

    def __call__(self, encoder: Encoder, sources: Sequence[Source]) -> list[Prepared]:
        """Make them ready."""
        return [prepare(encoder, source) for source in sources]
