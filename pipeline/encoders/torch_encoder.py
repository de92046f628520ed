"""What all encoders that run on torch share: poolings, one pass, dtypes, copies between host and device.

A family is a subclass of `TorchEncoder` with `_collate` (prepared samples → a batch) and `_output` (a batch → [N, D]);
the rest is said by a `ModelInfo`.

Shapes: N samples, T tokens, D width, C channels, H×W places. Prefix tokens are the class token and registers that stand
before the patches. All sums run in float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.base import OUTPUT, Encoder, EncoderKey, Layer, LoadOptions, Modality
from pipeline.encoders.taps import Reading, Tap, locate, tapped, watched
from pipeline.errors import UnknownNameError, UserError
from pipeline.layers import select_layers
from pipeline.runtime import torch_dtype

# ---- poolings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What must be known about [N, T, D] tokens to pool them."""

    mask: Tensor | None = None
    """[N, T], true where a real token stands; nothing where all are real."""
    prefix: int = 0
    """How many tokens stand before the patches (class token and registers)."""
    ends: Tensor | None = None
    """[N] position of the token that `eos` takes; nothing where the mask says it."""


def cls(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the first real token, [N, D]."""
    if about.mask is None:
        return tokens[:, 0].clone()  # a view would keep all tokens alive
    return _pick(tokens, about.mask.to(torch.uint8).argmax(dim=1))


def eos(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the token at the text's end, [N, D], whichever side the padding is on."""
    if about.ends is not None:
        return _pick(tokens, about.ends)
    if about.mask is None:
        return tokens[:, -1].clone()
    length = tokens.shape[1]
    return _pick(tokens, length - 1 - about.mask.flip(1).to(torch.uint8).argmax(dim=1))


def mean(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the mean over all real tokens, [N, D]; what stands at padding does not count, not even NaN."""
    if about.mask is None:
        return tokens.mean(dim=1, dtype=torch.float32)
    mask = about.mask.bool().unsqueeze(-1)
    total = torch.where(mask, tokens, tokens.new_zeros(())).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1).clamp(min=1)


def patch_mean(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the mean over the patches, without prefix tokens, [N, D]."""
    return tokens[:, about.prefix :].mean(dim=1, dtype=torch.float32)


def cls_patch_mean(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the class token and the mean over the patches side by side, [N, 2D]."""
    return torch.cat([cls(tokens, about).float(), patch_mean(tokens, about)], dim=1)


TOKEN_POOLS = {"cls": cls, "mean": mean, "eos": eos, "patch_mean": patch_mean, "cls+patch_mean": cls_patch_mean}


def global_average(maps: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return the mean over all places of [N, C, H, W] (or [N, H, W, C]), [N, C]."""
    return maps.mean(dim=(1, 2) if channels_last else (2, 3), dtype=torch.float32)


def _pick(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), positions.to(tokens.device)]


# ---- the encoder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a family says about one model."""

    modality: Modality
    """What the model takes."""
    taps: Mapping[str, Tap]
    """Inner layers that a hook takes, in order of depth, without `output`."""
    states: tuple[str, ...] = ()
    """Inner layers that the model itself hands over (`hidden_0` …), in order of depth."""
    identity: Mapping[str, Any]
    """The `encoder` part of the key."""
    preprocessing: Mapping[str, Any]
    """The `preprocessing` part of the key."""
    pools: tuple[str, ...] = ()
    """Poolings that the model can do beside `auto`."""
    maps: bool = False
    """Whether the model passes maps along, which are averaged over all places, instead of tokens."""
    inner_pool: str = "mean"
    """What `auto` means for the tokens of an inner layer."""
    channels_last: bool = False
    """Whether four-dimensional tensors inside are [N, H, W, C]."""
    refused: str = ""
    """Why the model has no inner layers to offer, where it should."""
    blocks: Sequence[nn.Module] = field(default_factory=tuple)
    """What `compile` compiles."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N samples on the device."""

    inputs: Mapping[str, Tensor]
    """Arguments of the model."""
    tokens: Tokens
    """How to pool the tokens of this batch."""


class TorchEncoder(Encoder):
    """A frozen torch model behind the contract of `Encoder`.

    Args:
        spec: The encoder as the user named it.
        model: The model; put into evaluation mode and on the device here.
        info: What the family says about it.
        options: What the user asked for.

    Raises:
        UserError: The model cannot do the asked pooling.
    """

    def __init__(self, spec: str, model: nn.Module, info: ModelInfo, options: LoadOptions) -> None:
        self.model = model.eval().requires_grad_(False).to(options.device)
        self.device = torch.device(options.device)
        self.info, self.options = info, options
        self.spec, self.modality = spec, info.modality
        if options.pool != "auto" and options.pool not in info.pools:
            raise UserError(
                expected=f"one of {', '.join(('auto', *info.pools))}", found=options.pool, where=f"--pool of {spec}"
            )
        if info.maps:  # convolutions are faster so, on a CPU too
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for block in info.blocks if options.compile else ():
            block.forward = torch.compile(block.forward)  # hooks stay outside what is compiled
        self._located: dict[str, Tap] = {}
        features = self._try((*info.taps, *info.states))
        self._located = self._locate_states(features)
        self._widths = {name: value.shape[1] for name, value in features.items()}
        super().__init__(spec, info.modality, [Layer(name=name, width=width) for name, width in self._widths.items()])

    def key(self) -> EncoderKey:
        """Return family, name, digests, preprocessing and pooling."""
        inner = "global average" if self.info.maps else self.info.inner_pool
        pooling = f"auto ({inner}; output: the library's own)" if self.options.pool == "auto" else self.options.pool
        return EncoderKey(
            encoder=dict(self.info.identity), preprocessing=dict(self.info.preprocessing), pooling=pooling
        )

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the asked layers of N prepared samples in one pass, each [N, D], float32, on the CPU.

        Raises:
            UnknownNameError: A layer is neither known nor a module of the model.
        """
        return self.start(prepared, layers)()

    def start(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> Finish:
        """Return as soon as a GPU has its work; what comes back waits for the features, as `encode` gives them."""
        pooled = self._pass(prepared, layers)
        return to_host({name: pooled[name] for name in layers})

    def width(self, layer: str) -> int:
        """Return D of a layer or of a module (which costs one pass over a made-up sample, once).

        Raises:
            UnknownNameError: The encoder has no such layer and the model no such module.
        """
        if layer not in self._widths:
            self._widths[layer] = self._try([layer])[layer].shape[1]
        return self._widths[layer]

    def resolve_layers(self, expression: str) -> tuple[str, ...]:
        """Return layer names; a part that is none may name a module of the model, such as `blocks.3.mlp`.

        Raises:
            UserError: The expression is empty or out of range, or a module gives nothing that can be pooled.
            UnknownNameError: A part is neither a layer nor a module.
        """
        names = [layer.name for layer in self.layers]
        modules = dict(self.model.named_modules())
        parts = [part.strip() for part in expression.split(",") if part.strip()]
        if self.info.refused and not {*parts} <= {"last", "-1", OUTPUT, *modules}:
            raise UserError(
                expected=f"inner layers of {self.spec} that are proven to be what they are called",
                found=self.info.refused,
                where=f"--layers {expression}",
                remedy="--layers last takes the output, which is the library's own",
            )
        extra = list(dict.fromkeys(part for part in parts if part in modules and part not in names))
        for part in extra:
            self.width(part)
        known = [part for part in parts if part not in extra]
        chosen = select_layers(",".join(known), names) if known or not extra else ()
        inner = tuple(name for name in chosen if name != OUTPUT)
        return (*inner, *extra, *(name for name in chosen if name == OUTPUT))

    @abstractmethod
    def _collate(self, prepared: Sequence[Tensor]) -> Batch:
        """Stack or pad prepared samples and bring them to the device."""

    @abstractmethod
    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Run the model.

        Returns:
            Its embedding, [N, D], by the library's own pooling or the asked one; and the asked states, not yet pooled.
        """

    @abstractmethod
    def _sample(self) -> Tensor:
        """Return one made-up prepared sample."""

    def _pass(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        wanted = [name for name in self.info.states if name in layers and name not in self._located]
        taps = {name: self._tap(name) for name in layers if name != OUTPUT and name not in wanted}
        with self._arithmetic():
            batch = self._collate(prepared)
            with tapped(taps, lambda tensor, tap: self._reduce(tensor, batch.tokens, tap.reading)) as pooled:
                output, states = self._output(batch, wanted)
            return {**pooled, **{name: self._reduce(states[name], batch.tokens) for name in wanted}, OUTPUT: output}

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.options.dtype != "fp32":
                stack.enter_context(torch.autocast(self.device.type, dtype=torch_dtype(self.options.dtype)))
            elif self.device.type == "cuda":  # fp32 means fp32: cuDNN would use TF32 for convolutions
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            yield

    def _reduce(self, tensor: Tensor, about: Tokens, reading: Reading | None = None) -> Tensor:
        if tensor.ndim == 4:
            last = reading.channels_last if reading else self.info.channels_last
            return global_average(tensor, channels_last=last)
        if tensor.ndim == 3:
            if about.mask is not None and about.mask.shape != tensor.shape[:2]:
                raise UserError(expected="one vector a token", found=f"shape {tuple(tensor.shape)}", where=self.spec)
            auto, about = (
                (reading.pool, replace(about, prefix=reading.prefix)) if reading else (self.info.inner_pool, about)
            )
            rule = self.options.pool if self.options.pool != "auto" else auto
            return TOKEN_POOLS[rule](tensor, about)
        if tensor.ndim == 2:
            return tensor.clone()
        raise UserError(expected="2, 3 or 4 dimensions", found=f"shape {tuple(tensor.shape)}", where=self.spec)

    def _tap(self, name: str) -> Tap:
        if tap := self.info.taps.get(name) or self._located.get(name):
            return tap
        modules = dict(self.model.named_modules())
        if not name or name not in modules:
            known = (*self.info.taps, *self.info.states, OUTPUT)
            raise UnknownNameError("layer or module", name, known, self.spec)
        return Tap(module=modules[name])

    def _try(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the asked layers and the output of one made-up sample, each [1, D]."""
        features = self._pass([self._sample()], layers)
        wrong = [name for name, value in features.items() if value.ndim != 2 or len(value) != 1]
        if wrong:
            raise UserError(
                expected="one vector a sample", found=f"other shapes in {', '.join(wrong)}", where=self.spec
            )
        return {name: features[name] for name in (*layers, OUTPUT)}

    def _locate_states(self, expected: Mapping[str, Tensor]) -> dict[str, Tap]:
        """Return taps for the hidden states that hooks pool to the same bits; the others the model hands over."""
        if not self.info.states:
            return {}
        with self._arithmetic():
            batch = self._collate([self._sample()])
            with watched(self.model) as seen:
                _, states = self._output(batch, self.info.states)
        self._located = locate(states, seen)
        found = self._try(tuple(self._located))
        return {name: tap for name, tap in self._located.items() if torch.equal(found[name], expected[name])}


# ---- between host and device -----------------------------------------------------------------------------------------

Finish = Callable[[], dict[str, Tensor]]
"""Waits for features that are on their way, and returns them."""


def stacked(samples: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return samples of one shape as one batch on the host; in pinned memory where the device is a GPU."""
    if device.type != "cuda":
        return torch.stack(list(samples))
    batch = torch.empty((len(samples), *samples[0].shape), dtype=samples[0].dtype, pin_memory=True)
    return torch.stack(list(samples), out=batch)


def to_device(batch: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Return a batch on the device; through pinned memory and without waiting where the device is a GPU."""
    moved = batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)
    return moved.contiguous(memory_format=torch.channels_last) if channels_last and moved.ndim == 4 else moved


def to_host(features: Mapping[str, Tensor]) -> Finish:
    """Start to copy [N, D] features to the CPU as float32; a GPU goes on with what comes next, in one copy for all."""
    ready = {name: tensor.float() for name, tensor in features.items()}
    if any(tensor.device.type == "cuda" for tensor in ready.values()):
        return _from_gpu(ready)
    here = {name: tensor.cpu().contiguous() for name, tensor in ready.items()}
    return lambda: here


def _from_gpu(ready: Mapping[str, Tensor]) -> Finish:
    flat = torch.cat([tensor.reshape(-1) for tensor in ready.values()])
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(flat.device))
    shapes = {name: tensor.shape for name, tensor in ready.items()}

    def finish() -> dict[str, Tensor]:
        copied.synchronize()
        pieces = torch.split(host.clone(), [shape.numel() for shape in shapes.values()])  # pinned memory is scarce
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    return finish
