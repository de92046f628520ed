"""A run or an export as CLIP_benchmark takes a model: (model, transform, tokenizer), like its `load_clip`.

from pipeline.apps.export.clip_benchmark import load_clip
model, transform, tokenizer = load_clip("model", task="classification")
zeroshot_classification.evaluate(model, dataloader, tokenizer, classes, templates, device="cpu")

Its command line, with all its options, runs with these models as the type `fewpairs`:

python -m pipeline.apps.export.clip_benchmark eval --model_type fewpairs --model any --pretrained model --dataset ...

There each of its scorers gets the vectors of its own task.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.apps.dual_encoder import DualEncoder, SideEncoder, load_model
from pipeline.encoders.libraries import import_library
from pipeline.errors import MissingExtraError, UserError, exit_with_sentence
from pipeline.projectors.base import Task

TYPE = "fewpairs"
CLASSIFYING = ("zeroshot_classification", "linear_probe")
"""CLIP_benchmark's scorers that classify."""
PADDING = -1
"""Behind the shorter texts of a batch; no token has this number."""


class ClipModel(nn.Module):
    """A dual encoder behind `encode_image` and `encode_text`, which take what transform and tokenizer gave.

    Encoders and projectors always compute as they did when the run was trained: a surrounding autocast is switched off,
    so that the numbers are the run's own.

    Args:
        model: The dual encoder.
        task: What its vectors are for, as in `DualEncoder.encode_image`; may be set anew between two scorers.
    """

    def __init__(self, model: DualEncoder, task: Task = "retrieval") -> None:
        super().__init__()
        self.dual, self.task = model, task

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit vectors [N, d] of a batch of transformed pictures, on the batch's device."""
        return self._encode("image", images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return unit vectors [N, d] of a batch of tokenised texts, on the batch's device."""
        return self._encode("text", tokens)

    def _encode(self, side: str, batch: Tensor) -> Tensor:
        encoders = self.dual.side(side)
        prepared = unpack(batch.cpu(), len(encoders.encoders), side)
        with torch.autocast(batch.device.type, enabled=False), torch.autocast("cpu", enabled=False):
            features = encoders.encoded(prepared)
            return self.dual.run.encode(side, features, self.dual.seed, task=self.task).to(batch.device)


class Transform:
    """PIL image → tensor: [3, H, W] for one image encoder, packed to [L] for several."""

    def __init__(self, side: SideEncoder) -> None:
        self.side = side

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a picture as the encoders take it."""
        picture = image.convert("RGB")
        return pack([[encoder.prepare(picture) for encoder in self.side.encoders]], "image")[0]


class Tokenizer:
    """Texts → tensor: token ids [N, T] for one text encoder, packed to [N, L] for several."""

    def __init__(self, side: SideEncoder) -> None:
        self.side = side

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Return texts as the encoders take them."""
        each = [texts] if isinstance(texts, str) else texts
        return pack([[encoder.prepare(text) for encoder in self.side.encoders] for text in each], "text")


def load_clip(
    path: str | Path, device: str = "cpu", seed: int | None = None, *, task: Task = "retrieval"
) -> tuple[ClipModel, Transform, Tokenizer]:
    """Load a run or an export for CLIP_benchmark.

    Args:
        path: Its folder.
        device: A torch device.
        seed: Which of its seeds; the first where not given.
        task: `classification` for `zeroshot_classification` and `linear_probe`, `retrieval` for `zeroshot_retrieval`.

    Raises:
        KeyMismatchError: An encoder that loads is not the one that the run was trained on.
        UserError: The folder holds neither a run nor an export, or an encoder is not there.
    """
    model = load_model(path, device=str(device), seed=seed)
    return ClipModel(model, task).eval(), Transform(model.side("image")), Tokenizer(model.side("text"))


def register() -> None:
    """Make CLIP_benchmark know the model type `fewpairs`, whose `pretrained` is a folder.

    Raises:
        MissingExtraError: CLIP_benchmark is not installed.
    """
    if find_spec("clip_benchmark") is None:
        raise MissingExtraError("clip_benchmark", "pip install clip-benchmark", "evaluation by it")
    models = import_library("clip_benchmark.models")

    def loaded(
        model_name: str = "", pretrained: str = "", cache_dir: str | None = None, device: str = "cpu"
    ) -> tuple[ClipModel, Transform, Tokenizer]:
        return load_clip(pretrained, device)

    models.TYPE2FUNC[TYPE] = loaded
    if TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(TYPE)
        for name in CLASSIFYING:
            scorer: Any = import_library(f"clip_benchmark.metrics.{name}")
            scorer.evaluate = _classifying(scorer.evaluate)


def _classifying(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Return a scorer that takes the vectors for classification of our models, and others as they are."""

    @wraps(evaluate)
    def evaluated(model: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(model, ClipModel):
            return evaluate(model, *rest, **options)
        return evaluate(ClipModel(model.dual, "classification").eval(), *rest, **options)

    return evaluated


def pack(rows: Sequence[Sequence[Tensor]], side: str) -> Tensor:
    """Return N samples, each prepared by E encoders, as one tensor that can be collated and moved.

    With one encoder: stacked, token ids padded. With several: each sample's tensors as the bytes of safetensors, after
    their number, padded to the longest.
    """
    if all(len(row) == 1 for row in rows):
        tensors = [row[0] for row in rows]
        if side == "text" and all(each.ndim == 1 and not each.is_floating_point() for each in tensors):
            return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PADDING)
        return torch.stack(tensors)
    return nn.utils.rnn.pad_sequence([_as_bytes(row) for row in rows], batch_first=True)


def unpack(batch: Tensor, encoders: int, side: str) -> list[list[Tensor]]:
    """Return for each of E encoders what it had prepared of the N samples: undoes `pack`.

    Raises:
        UserError: The batch did not come from this transform or tokenizer.
    """
    if encoders == 1:
        ids = side == "text" and batch.ndim == 2 and not batch.is_floating_point()
        return [[row[row != PADDING] if ids else row for row in batch]]
    try:
        packed = [row.numpy().tobytes() for row in batch]
        samples = [load(data[8 : 8 + int.from_bytes(data[:8], "little")]) for data in packed]
        return [[sample[str(place)] for sample in samples] for place in range(encoders)]
    except (SafetensorError, KeyError) as error:
        kind = "transform" if side == "image" else "tokenizer"
        raise UserError(expected=f"a batch from this model's {kind}", found=f"shape {tuple(batch.shape)}") from error


def _as_bytes(tensors: Sequence[Tensor]) -> Tensor:
    data = save({str(place): each.contiguous() for place, each in enumerate(tensors)})
    return torch.frombuffer(bytearray(len(data).to_bytes(8, "little") + data), dtype=torch.uint8)


def main() -> None:
    """Run CLIP_benchmark's own command line with the model type `fewpairs`."""
    with exit_with_sentence():
        register()
        try:
            program = import_library("clip_benchmark.cli")
        except ModuleNotFoundError as error:
            needed, purpose = str(error.name), "CLIP_benchmark's command line"
            raise MissingExtraError(needed, "pip install clip-benchmark", purpose) from error
        sys.exit(program.main())


if __name__ == "__main__":
    main()
