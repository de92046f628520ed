"""Load an encoder by its spec: `load_encoder("timm:vit_small_patch14_dinov2.lvd142m", device="cuda")`.

A family is one module and one line in `ENCODERS`. `module:Class` is a class of the user's own, a subclass of `Encoder`
built from `LoadOptions`: looked for where Python looks and then in the working folder; loading it runs its code.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import cast

from pipeline.encoders.base import Dtype, Encoder, LoadOptions, Modality, Spec, parse_spec
from pipeline.errors import UnknownNameError, UserError
from pipeline.files import file_sha256, spaced_json_digest
from pipeline.runtime import resolve_device

ENCODERS: dict[str, str] = {
    "timm": "pipeline.encoders.timm_family:load",
    "open_clip": "pipeline.encoders.open_clip_family:load",
    "hf": "pipeline.encoders.hf_family:load",
    "st": "pipeline.encoders.st_family:load",
    "package": "pipeline.encoders.packages:load",
}
"""Family → module and function, imported when the family is asked for."""


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
        spec: See `pipeline.encoders.base.Spec`.
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
    encoder = _loader(parsed)(parsed, options)
    if modality not in (None, encoder.modality):
        raise UserError(
            expected=f"an encoder of {modality}",
            found=f"one of {encoder.modality}",
            where=encoder.spec,
            remedy="leave --modality out or take another encoder",
        )
    if encoder.modality == "image" and (prompt or max_length):
        expected, found = "no --prompt and no --max-length for images", repr(prompt or max_length)
        raise UserError(expected=expected, found=found, where=encoder.spec)
    return encoder


def _loader(spec: Spec) -> Callable[[Spec, LoadOptions], Encoder]:
    if spec.family in ENCODERS:
        module, _, function = ENCODERS[spec.family].partition(":")
        return cast(Callable[[Spec, LoadOptions], Encoder], getattr(importlib.import_module(module), function))
    if all(part.isidentifier() for part in spec.family.split(".")) and spec.name.isidentifier():
        return load
    raise UnknownNameError("encoder family", spec.family, [*ENCODERS, "module:Class"], "--encoder")


_KNOWN = ("abc", "builtins", "pipeline", "torch", "typing")
"""Packages whose classes are not the user's own."""


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Import the module and build the class.

    Raises:
        UserError: There is no such module or class, or it is no encoder.
    """
    module = _import(spec.family, "--encoder")
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    known = [name for name, kind in classes.items() if issubclass(kind, Encoder) and not inspect.isabstract(kind)]
    if spec.name not in known:
        raise UnknownNameError("encoder class", spec.name, known, f"{spec.family} (--encoder {spec.text})")
    encoder: Encoder = classes[spec.name](options)
    return encoder


def trust_modules(names: Iterable[str]) -> None:
    """Import modules with encoder classes of the user's own, so that what a file names may be found in them.

    Raises:
        UserError: There is no such module.
    """
    for name in names:
        _import(name, "--trust-module")


def refuse_unknown_module(spec: str, where: str) -> None:
    """Refuse a spec that a file names where loading it would import a module: a file is not to choose code that runs.

    What this process has imported before, its user has chosen.

    Raises:
        UserError: It is of no known family, and its module was not imported before.
    """
    parsed = parse_spec(spec)
    if parsed.family not in ENCODERS and parsed.family not in sys.modules:
        raise UserError(
            expected=f"an encoder of a known family ({', '.join(ENCODERS)}), or of a module that you name",
            found=f"{spec!r}, whose code would run because a file says so",
            where=where,
            remedy=f"if you trust it: --trust-module {parsed.family}, or in Python trust_modules=({parsed.family!r},)",
        )


def own_source(encoder: Encoder) -> dict[str, str]:
    """Return {"source": digest} of the files that define a class of one's own, its bases too; {} for a known family.

    It stands in every store's key, so that changed code is never taken for the code that made the features. Modules
    that those files import are not followed: `version` in the encoder's own key is for them.
    """
    names = {kind.__module__ for kind in type(encoder).__mro__ if kind.__module__.partition(".")[0] not in _KNOWN}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names}  # none for a class typed at a prompt
    digests = sorted(file_sha256(Path(file)) for file in files if file and Path(file).is_file())
    return {"source": spaced_json_digest(digests)} if names else {}


def _import(name: str, where: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(".")[0]):
            raise
        raise UserError(
            expected=f"a known encoder family ({', '.join(ENCODERS)}) or a module to import",
            found=repr(name),
            where=where,
            remedy=f"for a class of your own, {name}.py must lie in the working folder or be installed",
        ) from error
    finally:
        sys.path.remove(here)
