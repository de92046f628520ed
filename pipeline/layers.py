"""Which layers: the grammar `all`, `last`, `0,5,-1`, `4:12`, module names, and commas between them.

Run by `extract` (which layers of an encoder to store) and by `align` (which stored layers to look at). A layer of
one of several stores is a `LayerRef`; records call it `1/output`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import UnknownNameError, UserError


class LayerRef(NamedTuple):
    """A layer of one of a side's stores."""

    store: int
    """Position of its store."""
    name: str
    """Its name there."""

    def label(self, stores: int) -> str:
        """Return its name for people and records; with several stores the store's position stands before it."""
        return self.name if stores == 1 else f"{self.store}/{self.name}"


def parse_label(label: str, stores: int) -> LayerRef | None:
    """Return the layer that a label of `LayerRef.label` means, with so many stores; None where it names no store."""
    if stores == 1:
        return LayerRef(0, label)
    index, slash, name = label.partition("/")
    return LayerRef(int(index), name) if slash and index.isdecimal() and int(index) < stores else None


def select_layers(expression: str, names: Sequence[str], *, where: str = "--layers") -> tuple[str, ...]:
    """Return the layer names that an expression means, in the encoder's own order and without repetition.

    Args:
        expression: `all`, `last`, an index (`0`, `-1`), a half-open range (`4:12`, `:3`, `-4:`), a layer's name, or
            several of these joined by commas.
        names: L layer names in order of depth; the last is the encoder's own output.
        where: Option or file that the expression came from, for the error.

    Raises:
        UserError: The expression is empty or an index lies outside 0..L-1.
        UnknownNameError: A part is neither of the grammar nor a layer's name.
    """
    chosen: set[int] = set()
    parts = [part.strip() for part in expression.split(",") if part.strip()]
    if not parts:
        raise UserError(expected="layers such as all, last, 0,5,-1, 4:12 or names", found="nothing", where=where)
    for part in parts:
        chosen.update(_indices(part, names, where))
    return tuple(names[index] for index in sorted(chosen))


def _indices(part: str, names: Sequence[str], where: str) -> range | list[int]:
    if part in names:
        return [names.index(part)]
    if part == "all":
        return range(len(names))
    if part == "last":
        return [len(names) - 1]
    if _is_integer(part):
        return [_resolve(int(part), names, where)]
    if ":" in part and all(not bound or _is_integer(bound) for bound in part.split(":", 1)):
        return _slice(part, names, where)
    raise UnknownNameError("layer", part, ("all", "last", *names), where)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _resolve(index: int, names: Sequence[str], where: str) -> int:
    if not -len(names) <= index < len(names):
        raise UserError(
            expected=f"a layer index between {-len(names)} and {len(names) - 1}",
            found=str(index),
            where=where,
            remedy=f"the layers are {', '.join(names)}",
        )
    return index % len(names)


def _slice(part: str, names: Sequence[str], where: str) -> range:
    start, stop = (int(bound) if bound else None for bound in part.split(":", 1))
    chosen = range(len(names))[slice(start, stop)]
    if not chosen:
        raise UserError(expected=f"a range that holds some of the {len(names)} layers", found=part, where=where)
    return chosen
