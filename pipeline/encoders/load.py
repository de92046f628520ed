"""Load an encoder by its spec: `load_encoder("timm:vit_small_patch14_dinov2.lvd142m", device="cuda")`.

The families stand in `pipeline.encoders.table`.
"""

import importlib
from collections.abc import Callable
from typing import cast

from pipeline.encoders.base import Dtype, Encoder, LoadOptions, Modality
from pipeline.encoders.spec import Spec, parse_spec
from pipeline.encoders.table import ENCODERS
from pipeline.errors import UnknownNameError, UserError
from pipeline.runtime import resolve_device

Loader = Callable[[Spec, LoadOptions], Encoder]


def load_encoder(
    spec: str,
    *,
    modality: Modality | None = None,
    pool: str = "auto",
    device: str = "cpu",
    dtype: Dtype = "fp32",
    max_length: int | None = None,
    prompt: str = "",
    compile: bool = False,  # noqa: A002 (the name of torch.compile)
) -> Encoder:
    """Load a frozen encoder in evaluation mode.

    Args:
        spec: See `pipeline.encoders.spec`.
        modality: Which tower of a two-tower model.
        pool: `auto` (the library's own for `output`, the family's default for inner layers), `cls`, `mean`, `eos`,
            `patch_mean` or `cls+patch_mean`.
        device: A torch device, or `auto`.
        dtype: `fp32`, `fp16` or `bf16` (autocast).
        max_length: Longest text in tokens.
        prompt: Put before every text.
        compile: Compile the encoder's blocks.

    Raises:
        UnknownNameError: The family, the model, the pooling or the dtype is unknown.
        MissingExtraError: The package of the family or of the weights is not installed.
        UserError: The weights are not there, or an option does not fit the encoder.
    """
    parsed = parse_spec(spec)
    options = LoadOptions(
        modality=modality,
        pool=pool,
        device=str(resolve_device(device)),
        dtype=dtype,
        max_length=max_length,
        prompt=prompt,
        compile=compile,
    )
    return _checked(_loader(parsed)(parsed, options), options)


def _loader(spec: Spec) -> Loader:
    if spec.family in ENCODERS:
        module, _, function = ENCODERS[spec.family].partition(":")
        return cast(Loader, getattr(importlib.import_module(module), function))
    if all(part.isidentifier() for part in spec.family.split(".")) and spec.name.isidentifier():
        from pipeline.encoders.custom import load

        return load
    raise UnknownNameError("encoder family", spec.family, [*ENCODERS, "module:Class"], "--encoder")


def _checked(encoder: Encoder, options: LoadOptions) -> Encoder:
    if options.modality not in (None, encoder.modality):
        raise UserError(
            expected=f"an encoder of {options.modality}",
            found=f"one of {encoder.modality}",
            where=encoder.spec,
            remedy="leave --modality out or take another encoder",
        )
    if encoder.modality == "image" and (options.prompt or options.max_length):
        raise UserError(
            expected="no --prompt and no --max-length for images",
            found=repr(options.prompt or options.max_length),
            where=encoder.spec,
        )
    return encoder
