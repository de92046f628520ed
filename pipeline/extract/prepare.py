"""One item made ready for the encoder, in a worker thread; what is wrong with it becomes its reason."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from pipeline.encoders.base import Encoder
from pipeline.errors import UserError
from pipeline.extract.items import Items
from pipeline.extract.rejected import RejectedInputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """An item that is ready for the encoder, or the reason why it never will be."""

    position: int
    """Which item of the data set."""
    tensor: Optional["Tensor"] = None
    """[3, H, W] or [T]; None if rejected."""
    reason: str = ""
    """Why it was rejected."""


def prepare(encoder: Encoder, items: Items, position: int) -> Prepared:
    """Load and prepare one item.

    Raises:
        UserError: The item is not the one that was digested.
    """
    try:
        sample = items.load(position, encoder.reduction)
    except RejectedInputError as error:
        return Prepared(position, reason=str(error))
    try:
        return Prepared(position, encoder.prepare(sample))
    except UserError as error:
        return Prepared(position, reason=f"the encoder refuses it: {error.sentence()}")
