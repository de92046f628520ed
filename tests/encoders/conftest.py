"""Tiny models with random weights, saved as local folders by the libraries themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoders.libraries import import_library

TEXTS = ["a dog", "two black dogs run over the grass", "a red boat on the sea", "the cat"]
WORDS = sorted({word for text in TEXTS for word in text.split()} | {"photo", "of"})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

BERT = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SMALL_IMAGE = {"image_size": 32, "patch_size": 8}

HfFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(7)
    sizes = [(60, 47), (33, 80), (64, 64)]
    coarse = [generator.integers(0, 256, (h // 4, w // 4, 3), dtype=np.uint8) for h, w in sizes]
    return [Image.fromarray(pixels).resize((w, h)) for pixels, (h, w) in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a model of timm as a local folder."""

    def save(architecture: str, model_args: dict[str, Any], **config: Any) -> Path:
        from safetensors.torch import save_file

        folder: Path = tmp_path_factory.mktemp(architecture)
        torch.manual_seed(3)
        model = import_library("timm").create_model(architecture, pretrained=False, num_classes=10, **model_args)
        size = model_args.get("img_size", 32)
        pretrained = {
            "input_size": [3, size, size],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "num_classes": 10,
            **{name: model.pretrained_cfg[name] for name in ("first_conv", "classifier")},
            **config,
        }
        described = {"architecture": architecture, "model_args": model_args, "pretrained_cfg": pretrained}
        (folder / "config.json").write_text(json.dumps(described))
        save_file(model.state_dict(), str(folder / "model.safetensors"))
        return folder

    return save


def save_tokenizer(folder: Path, *, bert: bool = True, side: str = "right") -> None:
    """Save a tokenizer that knows the words of `TEXTS`; BERT's frame of special tokens, or none."""
    tokenizers = import_library("tokenizers")
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if bert:
        frame = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=None, special_tokens=frame
        )
    fast = import_library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=16,
        padding_side=side,
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> HfFolder:
    """Return a function that saves a random model of transformers, its tokenizer and its image processor."""

    def save(
        config: str, model: str, *, processor: str = "", bert: bool = True, side: str = "right", **settings: Any
    ) -> Path:
        transformers = import_library("transformers")
        folder: Path = tmp_path_factory.mktemp(model)
        torch.manual_seed(5)
        built = getattr(transformers, model)(getattr(transformers, config)(**settings))
        built.save_pretrained(folder)
        if processor:
            kind, arguments = PROCESSORS[processor]
            getattr(transformers, kind)(**arguments).save_pretrained(folder)
        if "vocab_size" in settings or "text_config" in settings:
            save_tokenizer(folder, bert=bert, side=side)
        return folder

    return save


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "crop": (
        "BitImageProcessor",
        {
            "size": {"shortest_edge": 37},
            "crop_size": {"height": 32, "width": 32},
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.2, 0.3, 0.4],
            "resample": 3,
        },
    ),
    "squash": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 2}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
}
