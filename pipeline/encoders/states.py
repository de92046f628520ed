"""Hidden states as taps: where in a model each of the library's `hidden_states` passes, found on one made-up sample.

A library that hands over all hidden states keeps [N, T, D] of each of L layers alive until the pass ends. A state that
is the very tensor that some module takes in or gives can be pooled there instead, and nothing is kept.

    with watched(model) as seen:
        states = model(x, output_hidden_states=True).hidden_states
    taps = locate({f"hidden_{l}": state for l, state in enumerate(states)}, seen)
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pipeline.encoders.taps import Tap, first_argument, first_tensor

Passing = tuple[Tap, Tensor]
"""A place and the tensor that passed it."""


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Passing]]:
    """Yield a list that a forward pass fills with what each module takes in and gives, in order."""
    seen: list[Passing] = []

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(Tap(module=module, side="input"), first_argument(args, kwargs))

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        note(Tap(module=module), output)

    def note(place: Tap, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is not None:
            seen.append((place, tensor))

    handles: list[Any] = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
            handles.append(module.register_forward_hook(on_output))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def locate(states: Mapping[str, Tensor], seen: Sequence[Passing]) -> dict[str, Tap]:
    """Return the taps of those states that are the very tensor of a place passed once, the first of them."""
    times = Counter((id(place.module), place.side) for place, _ in seen)
    once = {id(tensor): place for place, tensor in reversed(seen) if times[id(place.module), place.side] == 1}
    return {name: once[id(state)] for name, state in states.items() if id(state) in once}
