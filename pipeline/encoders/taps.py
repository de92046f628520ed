"""Taps: forward hooks that pool what passes a place in a model, and the proof that a place is what it is called.

A tap pools a module's tokens or maps on the spot, so that no layer's full tensor is kept. A library that hands over
all hidden states keeps [N, T, D] of each of L layers alive until the pass ends; a state that is the very tensor that
some module takes in or gives is pooled there instead. Where that is, one made-up sample shows (`locate`).

Where a library says what its inner layers are (`forward_intermediates` of timm and open_clip), no name of a module is
trusted: a tap is taken only where its tensor holds the library's own numbers, and how it is read (which axes are
places, how many tokens stand before the patches) is what makes them equal (`prove`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.errors import UserError

T = TypeVar("T")
EMBEDDINGS = "embeddings"
"""The layer before the first block."""
Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the tensor of a place is read."""

    pool: str
    """What `auto` means for its tokens; `mean` for a map."""
    prefix: int = 0
    """How many tokens stand before the patches."""
    channels_last: bool = False
    """Whether a map is [N, H, W, C]."""

    def same_as(self, other: Reading) -> bool:
        """Tell whether another reading gives the same of the tensors that this one was made for."""
        if self.pool == "mean":
            return self.channels_last == other.channels_last
        return self.pool == other.pool == "cls" or (other.pool != "cls" and self.prefix == other.prefix)


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place in a model."""

    module: nn.Module
    """The module whose tensor is taken."""
    side: Side = "output"
    """What it takes in (its first argument) or what it gives."""
    reading: Reading | None = None
    """How its tensor is read; nothing where that is as for the whole model."""

    def attach(self, take: Callable[[Any], None]) -> RemovableHandle:
        """Call `take` with whatever passes here, until the handle that comes back is removed."""

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            take(args[0] if args else next(iter(kwargs.values()), None))

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            take(output)

        if self.side == "input":
            return self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        return self.module.register_forward_hook(on_output)


def block_taps(blocks: Sequence[nn.Module]) -> dict[str, Tap]:
    """Return taps of the residual stream: `embeddings` before the first block, `block_1` … `block_L` after each."""
    taps = {EMBEDDINGS: Tap(module=blocks[0], side="input")} if blocks else {}
    return taps | {f"block_{number}": Tap(module=block) for number, block in enumerate(blocks, start=1)}


def stage_taps(stages: Iterable[nn.Module]) -> dict[str, Tap]:
    """Return taps of `stage_1` … `stage_S` of a convolutional network."""
    return {f"stage_{number}": Tap(module=stage) for number, stage in enumerate(stages, start=1)}


@contextmanager
def tapped(taps: Mapping[str, Tap], reduce: Callable[[Tensor, Tap], T]) -> Iterator[dict[str, T]]:
    """Yield a dictionary that a forward pass fills with what `reduce` makes of the tensor of each tap.

    Raises:
        UserError: A tapped module gave no tensor, or one that cannot be pooled.
    """
    pooled: dict[str, T] = {}

    def take(name: str, value: Any) -> None:
        tensor = _first_tensor(value)
        if tensor is None:
            raise UserError(expected="a tensor", found=type(value).__name__, where=f"layer {name}")
        pooled[name] = reduce(tensor, taps[name])

    with ExitStack() as hooks:
        for name, tap in taps.items():
            hooks.enter_context(tap.attach(partial(take, name)))
        yield pooled
    missing = [name for name in taps if name not in pooled]
    if missing:
        raise UserError(expected=f"a forward pass through {', '.join(missing)}", found="one that leaves them out")


def _first_tensor(value: Any) -> Tensor | None:
    """Return the tensor of a module's input or output, the first of several; None where there is none."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    value = getattr(value, "last_hidden_state", value)
    return value if isinstance(value, Tensor) else None


Passing = tuple[Tap, Tensor]
"""A place and the tensor that passed it."""


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Passing]]:
    """Yield a list that a forward pass fills with what each module takes in and gives, in order."""
    seen: list[Passing] = []

    def note(place: Tap, value: Any) -> None:
        tensor = _first_tensor(value)
        if tensor is not None:
            seen.append((place, tensor))

    with ExitStack() as hooks:
        for module in model.modules():
            for place in (Tap(module=module, side="input"), Tap(module=module)):
                hooks.enter_context(place.attach(partial(note, place)))
        yield seen


def locate(states: Mapping[str, Tensor], seen: Sequence[Passing]) -> dict[str, Tap]:
    """Return the taps of those states that are the very tensor of a place passed once, the first of them."""
    times = Counter((id(place.module), place.side) for place, _ in seen)
    once = {id(tensor): place for place, tensor in reversed(seen) if times[id(place.module), place.side] == 1}
    return {name: once[id(state)] for name, state in states.items() if id(state) in once}


# ---- proof -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Intermediate:
    """What a library itself calls one of its inner layers, on N samples."""

    mean: Tensor
    """[N, D] mean over the patches or places."""
    first: Tensor | None = None
    """[N, D] first of the tokens before the patches, where the library hands them over."""
    places: int
    """How many patches or places there are."""

    @classmethod
    def of(cls, patches: Tensor, prefix: Tensor | None = None) -> Intermediate:
        """Return it from [N, D, H, W] or [N, T, D], and [N, P, D] tokens that stood before them."""
        flat = patches.flatten(2).transpose(1, 2) if patches.ndim == 4 else patches
        first = prefix[:, 0].clone() if prefix is not None and prefix.shape[1] else None
        return cls(mean=flat.mean(dim=1, dtype=torch.float32), first=first, places=flat.shape[1])

    def read_as(self, tensor: Tensor, *, class_token: bool) -> Reading | None:
        """Return how a tensor has to be read to be this layer; None where it cannot be."""
        if len(tensor) != len(self.mean):
            return None
        if tensor.ndim == 4:
            means = {last: tensor.mean(dim=(1, 2) if last else (2, 3), dtype=torch.float32) for last in (False, True)}
            return next(
                (Reading(pool="mean", channels_last=x) for x, mean in means.items() if same(mean, self.mean)), None
            )
        prefix = tensor.shape[1] - self.places if tensor.ndim == 3 else -1
        if prefix < 0 or not same(tensor[:, prefix:].mean(dim=1, dtype=torch.float32), self.mean):
            return None
        if self.first is not None and not (prefix and same(tensor[:, 0], self.first)):
            return None
        return Reading(pool="cls" if class_token and prefix else "patch_mean", prefix=prefix)


def same(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two tensors are the same but for the order of sums; what is no number may stand in both."""
    if found.shape != expected.shape:
        return False
    scale = float(expected.abs().nan_to_num(0, 0, 0).amax()) if expected.numel() else 0.0
    return torch.allclose(found.float(), expected.float(), rtol=1e-4, atol=1e-4 * scale, equal_nan=True)


Patches = tuple[Tensor, Tensor | None]
"""[N, D, H, W] or [N, T, D] of a layer, and [N, P, D] tokens that stand before them where the library gives them."""


def prove(
    model: nn.Module,
    run: Callable[[Tensor], object],
    samples: Tensor,
    declared: Mapping[str, Tap],
    theirs: Callable[[Tensor], Sequence[Patches]],
    *,
    class_token: bool,
) -> tuple[dict[str, Tap], str]:
    """Return the places of a model's inner layers, each with its reading; or none, and why.

    Of each layer the declared place is taken if its tensor holds the layer's numbers, or else the first that does.
    `embeddings` are what the first block takes in, if it is of the form that the block gives, and the tokens before
    its patches have not seen the samples yet.

    Args:
        model: The model, in evaluation mode.
        run: One forward pass of it over samples.
        samples: N made-up samples, N at least 2.
        declared: Where the layers should be, in order of depth; `embeddings` first if there are any.
        theirs: Gives what the library itself calls the inner layers of samples.
        class_token: Whether the model has a class token; it is taken where all layers have it.
    """
    names = [name for name in declared if name != EMBEDDINGS]
    try:
        with torch.inference_mode():
            layers = [Intermediate.of(*each) for each in theirs(samples)]
            names = names or [f"stage_{number}" for number in range(1, len(layers) + 1)]
            if len(names) != len(layers):
                return {}, f"{len(names)} modules where the library itself names {len(layers)} layers"
            taps = _places(model, partial(run, samples), declared, dict(zip(names, layers, strict=True)), class_token)
            missing = [name for name in names if name not in taps]
            if missing:
                found = f"{', '.join(missing[:3])}{', …' * (len(missing) > 3)}"
                return {}, f"no module that holds the library's own numbers of {found}"
            if EMBEDDINGS in declared:
                taps = {EMBEDDINGS: _before(partial(run, samples), declared[EMBEDDINGS], taps[names[0]]), **taps}
    except Exception as error:  # whatever a model of any library raises where it cannot say
        return {}, f"none, and {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    readings = {name: tap.reading for name, tap in taps.items() if tap.reading is not None}
    if {reading.pool for reading in readings.values()} > {"cls"}:  # the class token joins late
        readings = {name: replace(each, pool="patch_mean") for name, each in readings.items()}
    return {name: replace(taps[name], reading=reading) for name, reading in readings.items()}, ""


def _places(
    model: nn.Module,
    run: Callable[[], object],
    declared: Mapping[str, Tap],
    layers: Mapping[str, Intermediate],
    class_token: bool,
) -> dict[str, Tap]:
    """Return the places of those layers that have one: the declared, or else the first that holds the numbers."""
    found = _readings(run, layers, [tap for name, tap in declared.items() if name in layers], class_token)
    proven = {name: replace(tap, reading=found[name, tap]) for name, tap in declared.items() if (name, tap) in found}
    missing = {name: layer for name, layer in layers.items() if name not in proven}
    if missing:
        everywhere = [Tap(module=module, side=side) for module in model.modules() for side in SIDES]
        for (name, tap), reading in _readings(run, missing, everywhere, class_token).items():
            proven.setdefault(name, replace(tap, reading=reading))
    return {name: proven[name] for name in layers if name in proven}


def _readings(
    run: Callable[[], object], layers: Mapping[str, Intermediate], places: Iterable[Tap], class_token: bool
) -> dict[tuple[str, Tap], Reading]:
    """Return (layer, place) → reading for all that fit in one pass, in the order of passing; places passed once."""
    found: dict[tuple[str, Tap], Reading] = {}
    times: Counter[Tap] = Counter()

    def look(tap: Tap, value: Any) -> None:
        times[tap] += 1
        tensor = _first_tensor(value)
        if tensor is None or not tensor.is_floating_point():
            return
        for name, layer in layers.items():
            if reading := layer.read_as(tensor, class_token=class_token):
                found[name, tap] = reading

    with ExitStack() as hooks:
        for tap in places:
            hooks.enter_context(tap.attach(partial(look, tap)))
        run()
    return {(name, tap): reading for (name, tap), reading in found.items() if times[tap] == 1}


def _before(run: Callable[[], object], start: Tap, first: Tap) -> Tap:
    """Return the place before the first block, read as what that block gives.

    Raises:
        UserError: What the block takes in is of another form.
    """
    with tapped({EMBEDDINGS: start, "first": first}, lambda tensor, _: tensor.clone()) as passed:
        run()
    before, after = passed[EMBEDDINGS], passed["first"]
    prefix = before[:, : first.reading.prefix] if first.reading else before[:, :0]
    if before.shape != after.shape or not torch.equal(prefix, prefix[:1].expand_as(prefix)):
        raise UserError(expected=f"{EMBEDDINGS} of the form of the first block's tokens", found="another")
    return replace(start, reading=first.reading)
