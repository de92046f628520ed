"""The conformance sweep: our encoder of a model beside the model itself, and what comes of it as a row of a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.encoders.torch_encoder import TorchEncoder
from pipeline.errors import UserError


@dataclass(frozen=True)
class Row:
    """What is known of one family of models."""

    library: str
    """timm, transformers, open_clip or sentence-transformers."""
    family: str
    """The module, model type or kind of configuration."""
    example: str = ""
    """The model that was built."""
    layers: str = ""
    """Its inner layers."""
    pooling: str = ""
    """What `auto` takes of an inner layer."""
    verdict: str = ""
    """`proven`, or `refused: …`, or `WRONG: …`."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family to be swept."""

    library: str
    """As in `Row`."""
    family: str
    """As in `Row`."""
    run: Callable[[], Row]
    """Builds a small model, compares, and gives the row."""


def judged(
    row: Row, encoder: TorchEncoder, prepared: Sequence[Tensor], *, expected: Mapping[str, Tensor], output: Tensor
) -> Row:
    """Return the row with a verdict.

    Args:
        row: What was built.
        encoder: Our encoder of it.
        prepared: N samples.
        expected: The library's own [N, D] of every inner layer but `embeddings`; empty where they are refused.
        output: The library's own embedding, [N, D].
    """
    names = [layer.name for layer in encoder.layers]
    found = encoder.encode(prepared, names)
    wrong = _unlike(found, {**expected, "output": output}, 1e-3)
    again = encoder.encode(prepared, names)
    wrong += [f"{name} differs the second time" for name in names if not torch.equal(again[name], found[name])]
    alone = encoder.encode(prepared[:1], names)
    wrong += [f"{text} when alone" for text in _unlike({n: v[:1] for n, v in found.items()}, alone, 1e-3)]
    wrong += [f"{name} is compared with nothing" for name in names if name not in ("output", "embeddings", *expected)]
    if encoder.info.refused:
        wrong += [] if _refuses(encoder) else ["inner layers are neither there nor refused"]
    inner = names[:-1]
    layers = f"{inner[0]} … {inner[-1]}" if len(inner) > 1 else "".join(inner) or "output alone"
    pooling = ("average" if encoder.info.maps else encoder.info.inner_pool) if inner else ""
    verdict = f"output proven; layers refused: {encoder.info.refused}" if encoder.info.refused else "proven"
    return replace(row, layers=layers, pooling=pooling, verdict=f"WRONG: {'; '.join(wrong)}" if wrong else verdict)


def _unlike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """Return what differs by more than a share of the expected values' size."""
    wrong = []
    for name, value in expected.items():
        if found[name].shape != value.shape:
            wrong.append(f"{name} has shape {tuple(found[name].shape)} for {tuple(value.shape)}")
        elif not (found[name] - value).norm() <= tolerance * value.norm():
            wrong.append(f"{name} is another")
    return wrong


def _refuses(encoder: TorchEncoder) -> bool:
    try:
        encoder.resolve_layers("all")
    except UserError as error:
        return encoder.info.refused in str(error)
    return False


def noise(size: int) -> Tensor:
    """Return two images of noise, [2, 3, size, size]."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(11))


def shaken(model: nn.Module) -> nn.Module:
    """Return a model whose weights have all been moved: many start at zero, and hide what they do."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model
