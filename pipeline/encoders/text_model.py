"""Text encoders on torch: a tokenizer prepares, padding to the longest text collates. Families subclass it.

A fast tokenizer is copied, with the truncation set once and no padding, so that threads share it without changing it
(its wrapper in transformers sets both on every call). A slow one works behind a lock.
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.encoders.base import LoadOptions, Modality
from pipeline.encoders.libraries import import_library
from pipeline.encoders.torch_encoder import Batch, ModelInfo, Tokens, TorchEncoder, to_device
from pipeline.errors import UserError
from pipeline.files import spaced_json_digest

UNLIMITED = 512
"""Tokens that are taken where neither tokenizer nor model says a limit."""


class TextTokenizer:
    """Prompt and text to token ids.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: Longest text in tokens, special tokens counted.
        prompt: Put before every text.
        lower: Lower the case first (a setting of some sentence-transformers models).
    """

    def __init__(self, tokenizer: Any, *, max_length: int, prompt: str = "", lower: bool = False) -> None:
        self.max_length, self.prompt, self.lower = max_length, prompt, lower
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)
        self._encode, self.digest = _fast(tokenizer, max_length) if tokenizer.is_fast else _slow(tokenizer, max_length)

    def __call__(self, text: str) -> Tensor:
        """Return [T] token ids.

        Raises:
            UserError: The text has no token.
        """
        text = self.prompt + text
        ids = self._encode(text.lower() if self.lower else text)
        if not ids:
            raise UserError(expected="a text with at least one token", found=repr(text))
        return torch.tensor(ids, dtype=torch.long)

    def to_json(self) -> dict[str, Any]:
        """Return what the key must say."""
        return {"tokenizer": self.digest, "max_length": self.max_length, "prompt": self.prompt, "lower": self.lower}


def length_limit(asked: int | None, *limits: Any) -> int:
    """Return the longest text in tokens: the asked length, which may not exceed the smallest limit that is one.

    Raises:
        UserError: The asked length is more than tokenizer or model can take.
    """
    real = [int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    limit = min(real, default=None)
    if asked is not None and limit is not None and asked > limit:
        raise UserError(expected=f"at most {limit} tokens", found=str(asked), where="--max-length")
    return asked or limit or UNLIMITED


def pad(ids: Sequence[Tensor], pad_id: int, *, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return [N, T] token ids and their [N, T] mask, padded on the right to the longest text or to a fixed length.

    On the right for decoders too: a causal model does not look at what follows.
    """
    longest = length or max(len(row) for row in ids)
    tokens = torch.full((len(ids), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for number, row in enumerate(ids):
        tokens[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return tokens, mask


def _fast(tokenizer: Any, max_length: int) -> tuple[Callable[[str], list[int]], str]:
    backend = import_library("tokenizers").Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    digest = spaced_json_digest({"backend": json.loads(backend.to_str()), "truncation": tokenizer.truncation_side})
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    return (lambda text: list(backend.encode(text).ids)), digest


def _slow(tokenizer: Any, max_length: int) -> tuple[Callable[[str], list[int]], str]:
    lock = threading.Lock()

    def encode(text: str) -> list[int]:
        with lock:
            return list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])

    words = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "settings": tokenizer.init_kwargs}
    words["settings"] = {name: str(value) for name, value in words["settings"].items() if "path" not in name}
    return encode, spaced_json_digest(words)


@dataclass(frozen=True, kw_only=True)
class TextInfo(ModelInfo):
    """What a family says about one model of texts."""

    modality: Modality = "text"
    tokenizer: TextTokenizer
    """From text to token ids."""
    fixed_length: bool = False
    """Pad every batch to the tokenizer's maximum length and hide nothing (as SigLIP was trained)."""


class TextModel(TorchEncoder):
    """A torch model of texts.

    Raises:
        UserError: The model cannot do the asked pooling, or a text's features depend on what it is batched with.
    """

    info: TextInfo

    def __init__(self, spec: str, model: nn.Module, info: TextInfo, options: LoadOptions) -> None:
        super().__init__(spec, model, info, options)
        if not info.fixed_length:
            self._require_mask()

    def prepare(self, sample: Image.Image | str) -> Tensor:
        """Turn a text into T token ids, prompt before it, cut at the maximum length.

        Raises:
            UserError: The sample is an image, or the text has no token.
        """
        if not isinstance(sample, str):
            raise UserError(expected="a text", found=type(sample).__name__, where=self.spec)
        return self.info.tokenizer(sample)

    def _collate(self, prepared: Sequence[Tensor]) -> Batch:
        length = self.info.tokenizer.max_length if self.info.fixed_length else None
        ids, mask = pad(prepared, self.info.tokenizer.pad_id, length=length)
        inputs = {"input_ids": to_device(ids, self.device)}
        if self.info.fixed_length:
            return Batch(inputs=inputs, tokens=Tokens())
        inputs["attention_mask"] = to_device(mask, self.device)
        return Batch(inputs=inputs, tokens=Tokens(mask=inputs["attention_mask"]))

    def _require_mask(self) -> None:
        """Encode a short text alone and beside a longer one: some models look at the padding, mask or not."""
        one, two = [number for number in range(3) if number != self.info.tokenizer.pad_id][:2]
        short, long = torch.tensor([one, two]), torch.tensor([one, two] * 4)
        names = [layer.name for layer in self.layers]
        alone, beside = self.encode([short], names), self.encode([short, long], names)
        tolerance = 1e-3 if self.options.dtype == "fp32" else 5e-2
        for name in names:
            least = tolerance * float(alone[name].abs().nan_to_num(0, 0, 0).amax())
            if not torch.allclose(alone[name], beside[name][:1], rtol=0, atol=least, equal_nan=True):
                raise UserError(
                    expected="features of a text that do not depend on the texts beside it",
                    found=f"another {name} beside a longer text: the model does not leave padding out",
                    where=self.spec,
                )

    def _sample(self) -> Tensor:
        return torch.tensor([self.info.tokenizer.pad_id, self.info.tokenizer.pad_id])
