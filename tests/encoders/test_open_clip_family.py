"""open_clip: each tower's output and layers equal the library's own `encode_*` and `forward_intermediates`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.encoders.base import Encoder, Modality
from pipeline.encoders.libraries import import_library
from pipeline.encoders.load import load_encoder
from pipeline.errors import UnknownNameError, UserError

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
PLAIN = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
RESNET = {**PLAIN, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
AVERAGED = {**PLAIN, "custom_text": True, "vision_cfg": {**VISION, "pool_type": "avg", "final_ln_after_pool": True}}
TIMM = {
    **PLAIN,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
    "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
}
COCA = {
    **PLAIN,
    "custom_text": True,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
}
Save = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    from safetensors.torch import save_file

    folders: dict[str, Path] = {}

    def make(config: dict[str, Any]) -> Path:
        described = json.dumps(
            {"model_cfg": config, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
        )
        if described not in folders:
            folder: Path = tmp_path_factory.mktemp("clip")
            (folder / "open_clip_config.json").write_text(described)
            torch.manual_seed(2)
            model = import_library("open_clip").create_model(f"local-dir:{folder}", load_weights=False)
            save_file(model.state_dict(), folder / "open_clip_model.safetensors")
            folders[described] = folder
        return folders[described]

    return make


def encode(encoder: Encoder, samples: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    prepared = [encoder.prepare(sample) for sample in samples]
    return torch.stack(prepared), encoder.encode(prepared, encoder.resolve_layers("all"))


def reference(folder: Path) -> Any:
    return import_library("open_clip").create_model_and_transforms(f"local-dir:{folder}")


@torch.no_grad()
def test_image_tower(save: Save, images: list[Image.Image]) -> None:
    folder = save(PLAIN)
    encoder = load_encoder(f"open_clip:{folder}", modality="image")
    model, _, transform = reference(folder)
    inputs, features = encode(encoder, images)
    torch.testing.assert_close(inputs, torch.stack([transform(image) for image in images]), rtol=0, atol=0)
    torch.testing.assert_close(features["output"], model.eval().encode_image(inputs), rtol=1e-5, atol=1e-5)
    inner = model.visual.forward_intermediates(inputs, output_extra_tokens=True, intermediates_only=True)
    for number, prefix in enumerate(inner["image_intermediates_prefix"], start=1):
        torch.testing.assert_close(features[f"block_{number}"], prefix[:, 0], rtol=1e-5, atol=1e-5)
    assert list(features) == ["embeddings", "block_1", "block_2", "output"]


@torch.no_grad()
def test_image_poolings_leave_the_projection_out(save: Save, images: list[Image.Image]) -> None:
    folder = save(PLAIN)
    model = reference(folder)[0].eval()
    encoder = load_encoder(f"open_clip:{folder}", modality="image", pool="cls")
    inputs, features = encode(encoder, images)
    projected = features["output"] @ model.visual.proj
    torch.testing.assert_close(projected, model.encode_image(inputs), rtol=1e-5, atol=1e-5)
    assert load_encoder(f"open_clip:{folder}", modality="image", pool="cls+patch_mean").width("output") == 64


@torch.no_grad()
def test_coca(save: Save, images: list[Image.Image], texts: list[str]) -> None:
    folder = save(COCA)
    model = reference(folder)[0].eval()
    inputs, features = encode(load_encoder(f"open_clip:{folder}", modality="image"), images)
    torch.testing.assert_close(features["output"], model.encode_image(inputs), rtol=1e-5, atol=1e-5)
    inner = model.visual.forward_intermediates(inputs, output_extra_tokens=True, intermediates_only=True)
    for number, prefix in enumerate(inner["image_intermediates_prefix"], start=1):
        torch.testing.assert_close(features[f"block_{number}"], prefix[:, 0], rtol=1e-5, atol=1e-5)
    ids, features = encode(load_encoder(f"open_clip:{folder}", modality="text"), texts)
    torch.testing.assert_close(features["output"], model.encode_text(ids), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [RESNET, AVERAGED, TIMM], ids=["resnet", "averaged", "timm"])
def test_other_image_towers(save: Save, images: list[Image.Image], config: dict[str, Any]) -> None:
    folder = save(config)
    encoder = load_encoder(f"open_clip:{folder}", modality="image")
    inputs, features = encode(encoder, images)
    torch.testing.assert_close(
        features["output"], reference(folder)[0].eval().encode_image(inputs), rtol=1e-5, atol=1e-5
    )
    assert len(features) > 3
    with pytest.raises(UserError, match="expected one of auto, found patch_mean"):
        load_encoder(f"open_clip:{folder}", modality="image", pool="patch_mean")


@torch.no_grad()
@pytest.mark.parametrize("config", [PLAIN, TIMM], ids=["end of text", "last token"])
def test_text_tower(save: Save, texts: list[str], config: dict[str, Any]) -> None:
    folder = save(config)
    encoder = load_encoder(f"open_clip:{folder}", modality="text")
    model = reference(folder)[0].eval()
    ids, features = encode(encoder, texts)
    tokenizer = import_library("open_clip").get_tokenizer(f"local-dir:{folder}")
    assert torch.equal(ids, tokenizer(texts))
    torch.testing.assert_close(features["output"], model.encode_text(ids), rtol=1e-5, atol=1e-5)
    inner = model.forward_intermediates(text=ids, normalize=False)["text_intermediates"]
    ends = ids.argmax(dim=1) if config is PLAIN else torch.full((len(ids),), 11)
    for number, tokens in enumerate(inner, start=1):
        expected = tokens[torch.arange(len(ids)), ends]
        torch.testing.assert_close(features[f"block_{number}"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_mean_counts_real_tokens_only(save: Save, texts: list[str]) -> None:
    folder = save(PLAIN)
    encoder = load_encoder(f"open_clip:{folder}", modality="text", pool="mean", prompt="a photo of ")
    ids, features = encode(encoder, texts)
    model = reference(folder)[0].eval()
    tokens = model.forward_intermediates(text=ids, normalize=False)["text_intermediates"][0]
    expected = [row[: end + 1].mean(dim=0) for row, end in zip(tokens, ids.argmax(dim=1).tolist(), strict=True)]
    torch.testing.assert_close(features["block_1"], torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_weights_may_be_a_file(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(PLAIN)
    library = import_library("open_clip")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(PLAIN))
    monkeypatch.setattr(library.factory, "_MODEL_CONFIGS", dict(library.factory._MODEL_CONFIGS))
    library.add_model_config(tmp_path / "tiny-clip.json")
    weights = folder / "open_clip_model.safetensors"
    by_file = load_encoder(f"open_clip:tiny-clip/{weights}", modality="image").key()
    by_folder = load_encoder(f"open_clip:{folder}", modality="image").key()
    assert by_file.encoder["name"] == "tiny-clip/local"
    assert by_file.encoder["weights"] == by_folder.encoder["weights"]


def test_mistakes_are_sentences(save: Save, tmp_path: Path) -> None:
    folder = save(PLAIN)
    modality: Modality = "image"
    with pytest.raises(UserError, match="expected --modality image or --modality text"):
        load_encoder(f"open_clip:{folder}")
    with pytest.raises(UnknownNameError, match="did you mean 'ViT-B-32'"):
        load_encoder("open_clip:ViT-B-33/openai", modality=modality)
    with pytest.raises(UnknownNameError, match="known pretrained tag of ViT-B-32"):
        load_encoder("open_clip:ViT-B-32", modality=modality)
    with pytest.raises(UserError, match="expected a weight file"):
        load_encoder(f"open_clip:ViT-B-32/{tmp_path}/none.pt", modality=modality)
    with pytest.raises(UserError, match=r"expected open_clip_config\.json in"):
        load_encoder(f"open_clip:{tmp_path}", modality=modality)
    with pytest.raises(UserError, match="the context length of 12 tokens"):
        load_encoder(f"open_clip:{folder}", modality="text", max_length=7)
