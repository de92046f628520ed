"""Text encoders on torch: a tokenizer prepares, padding to the longest text collates. Families subclass it."""

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.pooling import Tokens
from pipeline.encoders.tokenizer import TextTokenizer, pad
from pipeline.encoders.torch_encoder import Batch, Plan, TorchEncoder
from pipeline.encoders.transfer import to_device
from pipeline.errors import UserError

TEXT_POOLS = ("cls", "mean", "eos")
DECODER_POOLS = ("mean", "eos")


class TextModel(TorchEncoder):
    """A torch model of texts.

    Args:
        spec: The encoder as the user named it.
        model: The model.
        plan: What the family says about it.
        options: What the user asked for.
        tokenizer: From text to token ids.
        fixed_length: Pad every batch to the tokenizer's maximum length and hide nothing (as SigLIP was trained).
    """

    padding_side: Literal["left", "right"] = "right"
    """Right for all: a causal model does not look at what follows. Left gives position ids and the same features."""

    def __init__(
        self,
        spec: str,
        model: nn.Module,
        plan: Plan,
        options: LoadOptions,
        *,
        tokenizer: TextTokenizer,
        fixed_length: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.fixed_length = fixed_length
        super().__init__(spec, model, plan, options)

    def prepare(self, sample: Image.Image | str) -> Tensor:
        """Turn a text into T token ids, prompt before it, cut at the maximum length.

        Raises:
            UserError: The sample is an image, or the text has no token.
        """
        if not isinstance(sample, str):
            raise UserError(expected="a text", found=type(sample).__name__, where=self.spec)
        return self.tokenizer(sample)

    def _collate(self, prepared: Sequence[Tensor]) -> Batch:
        length = self.tokenizer.max_length if self.fixed_length else None
        ids, mask = pad(prepared, self.tokenizer.pad_id, side=self.padding_side, length=length)
        inputs = {"input_ids": to_device(ids, self.device)}
        if self.fixed_length:
            return Batch(inputs=inputs, tokens=Tokens())
        inputs["attention_mask"] = to_device(mask, self.device)
        if self.padding_side == "left":
            inputs["position_ids"] = to_device((mask.cumsum(dim=1) - 1).clamp(min=0), self.device)
        return Batch(inputs=inputs, tokens=Tokens(mask=inputs["attention_mask"]))

    def _sample(self) -> Tensor:
        return torch.tensor([self.tokenizer.pad_id, self.tokenizer.pad_id])
