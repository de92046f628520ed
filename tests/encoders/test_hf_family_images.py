"""Image models of transformers: hidden states and output equal the library's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.encoders.hf_family import HfVisionEncoder
from pipeline.encoders.libraries import config_digest, import_library
from pipeline.encoders.load import load_encoder
from pipeline.errors import UserError

SIZE = {"image_size": 32, "patch_size": 8}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TOWER = {**BLOCKS, **SIZE, "intermediate_size": 64}
TEXT_TOWER = {**BLOCKS, "intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 16, "projection_dim": 24}
HfFolder = Callable[..., Path]


def load(folder: Path, **options: Any) -> HfVisionEncoder:
    encoder = load_encoder(f"hf:{folder}", **options)
    assert isinstance(encoder, HfVisionEncoder)
    return encoder


def features_of(encoder: HfVisionEncoder, images: list[Image.Image]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    prepared = [encoder.prepare(image) for image in images]
    return torch.stack(prepared), encoder.encode(prepared, encoder.resolve_layers("all"))


def reference(folder: Path, kind: str = "AutoModel", **arguments: Any) -> Any:
    return getattr(import_library("transformers"), kind).from_pretrained(folder, **arguments).eval()


def check_hidden(features: dict[str, torch.Tensor], states: tuple[torch.Tensor, ...], rule: Callable[..., Any]) -> None:
    assert list(features) == [*(f"hidden_{number}" for number in range(len(states))), "output"]
    for number, state in enumerate(states):
        torch.testing.assert_close(features[f"hidden_{number}"], rule(state), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "model", "extra"),
    [
        ("Dinov2Config", "Dinov2Model", {}),
        ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"num_register_tokens": 3}),
        ("ViTConfig", "ViTModel", {}),
    ],
)
def test_transformers_with_a_class_token(
    hf_folder: HfFolder, images: list[Image.Image], config: str, model: str, extra: dict[str, Any]
) -> None:
    folder = hf_folder(config, model, processor="crop", **BLOCKS, **SIZE, **extra)
    inputs, features = features_of(load(folder), images)
    out = reference(folder)(inputs, output_hidden_states=True)
    check_hidden(features, out.hidden_states, lambda state: state[:, 0])
    torch.testing.assert_close(features["output"], out.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_registers_do_not_count_as_patches(hf_folder: HfFolder, images: list[Image.Image]) -> None:
    settings = {**BLOCKS, **SIZE, "num_register_tokens": 3}
    folder = hf_folder("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", processor="squash", **settings)
    inputs, features = features_of(load(folder, pool="cls+patch_mean"), images)
    out = reference(folder)(inputs, output_hidden_states=True)

    def both(tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokens[:, 0], tokens[:, 4:].mean(dim=1)], dim=1)

    check_hidden(features, out.hidden_states, both)
    torch.testing.assert_close(features["output"], both(out.last_hidden_state), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "model", "processor"),
    [("ResNetConfig", "ResNetModel", "crop"), ("ConvNextConfig", "ConvNextModel", "convnext")],
)
def test_networks_of_stages(
    hf_folder: HfFolder, images: list[Image.Image], config: str, model: str, processor: str
) -> None:
    sizes: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    sizes |= {"embedding_size": 8} if config == "ResNetConfig" else {}
    folder = hf_folder(config, model, processor=processor, **sizes)
    inputs, features = features_of(load(folder), images)
    out = reference(folder)(inputs, output_hidden_states=True)
    check_hidden(features, out.hidden_states, lambda maps: maps.mean(dim=(2, 3)))
    torch.testing.assert_close(features["output"], out.pooler_output.flatten(1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_tower_of_clip(hf_folder: HfFolder, images: list[Image.Image]) -> None:
    settings = {"vision_config": {**TOWER, "projection_dim": 24}, "text_config": TEXT_TOWER, "projection_dim": 24}
    folder = hf_folder("CLIPConfig", "CLIPModel", processor="clip", **settings)
    encoder = load(folder, modality="image")
    inputs, features = features_of(encoder, images)
    own = reference(folder, "CLIPVisionModelWithProjection")(inputs, output_hidden_states=True)
    check_hidden(features, own.hidden_states, lambda state: state[:, 0])
    torch.testing.assert_close(features["output"], own.image_embeds, rtol=1e-5, atol=1e-5)
    assert not any("text_model" in name for name, _ in encoder.model.named_parameters())
    normed = load(folder, modality="image", pool="cls")
    torch.testing.assert_close(
        encoder.model.visual_projection(features_of(normed, images)[1]["output"]),
        own.image_embeds,
        rtol=1e-5,
        atol=1e-5,
    )


@torch.no_grad()
def test_one_tower_of_siglip(hf_folder: HfFolder, images: list[Image.Image]) -> None:
    settings = {"vision_config": TOWER, "text_config": TEXT_TOWER}
    folder = hf_folder("SiglipConfig", "SiglipModel", processor="siglip", **settings)
    inputs, features = features_of(load(folder, modality="image"), images)
    own = reference(folder, "SiglipVisionModel")(inputs, output_hidden_states=True)
    check_hidden(features, own.hidden_states, lambda state: state.mean(dim=1))
    torch.testing.assert_close(features["output"], own.pooler_output, rtol=1e-5, atol=1e-5)


def test_two_towers_need_a_modality(hf_folder: HfFolder) -> None:
    settings = {"vision_config": TOWER, "text_config": TEXT_TOWER}
    folder = hf_folder("SiglipConfig", "SiglipModel", processor="siglip", **settings)
    with pytest.raises(UserError, match="expected --modality image or --modality text, found none"):
        load(folder)


def test_an_image_size_that_the_model_cannot_take_is_one_sentence(hf_folder: HfFolder) -> None:
    folder = hf_folder("ViTConfig", "ViTModel", processor="crop", **BLOCKS, image_size=64, patch_size=8)
    with pytest.raises(UserError, match=r"expected a readable model in .*found ValueError: Input image size"):
        load(folder)


def test_weights_that_do_not_cover_the_model_are_refused(hf_folder: HfFolder) -> None:
    from safetensors.torch import load_file, save_file

    folder = hf_folder("Dinov2Config", "Dinov2Model", processor="crop", **BLOCKS, **SIZE)
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"weights for all of Dinov2Model, found none for 1 tensors, such as layernorm\.weight"
    ):
        load(folder)


def test_a_folder_without_image_processor_is_one_sentence(hf_folder: HfFolder) -> None:
    folder = hf_folder("Dinov2Config", "Dinov2Model", **BLOCKS, **SIZE)
    with pytest.raises(UserError, match=r"expected a readable model in .*found OSError"):
        load(folder)


@torch.no_grad()
def test_the_real_transformer(shared: Path) -> None:
    folder = shared / "encoders" / "vit-s14-imgfocus"
    pictures = sorted((shared / "data" / "flickr8k" / "images").glob("*.jpg"))[:1]
    opened = [Image.open(picture).convert("RGB") for picture in pictures]
    encoder = load(folder)
    inputs, features = features_of(encoder, opened)
    processor = import_library("transformers").AutoImageProcessor.from_pretrained(folder, backend="pil")
    torch.testing.assert_close(inputs, processor(opened, return_tensors="pt")["pixel_values"], rtol=1e-5, atol=1e-5)
    out = reference(folder, dtype=torch.float32)(inputs, output_hidden_states=True)
    check_hidden(features, out.hidden_states, lambda state: state[:, 0])
    torch.testing.assert_close(features["output"], out.pooler_output, rtol=1e-5, atol=1e-5)
    assert len(encoder.layers) == 14


@torch.no_grad()
def test_a_class_token_is_told_by_the_tokens_not_by_a_parameter(hf_folder: HfFolder, images: list[Image.Image]) -> None:
    settings = {**TOWER, "is_native": False}
    folder = hf_folder("Aimv2VisionConfig", "Aimv2VisionModel", processor="squash", **settings)
    encoder = load(folder)
    inputs, features = features_of(encoder, images)
    out = reference(folder)(inputs, output_hidden_states=True)
    assert any("cls_token" in name for name, _ in encoder.model.named_parameters())  # of the pooling head
    check_hidden(features, out.hidden_states, lambda state: state.mean(dim=1))
    torch.testing.assert_close(features["output"], out.pooler_output, rtol=1e-5, atol=1e-5)
    assert encoder.key().encoder["version"] == 2
    with pytest.raises(UserError, match="expected one of auto, mean, patch_mean, found cls"):
        load(folder, pool="cls")


@torch.no_grad()
def test_a_masked_autoencoder_sees_all_patches_in_their_order(hf_folder: HfFolder, images: list[Image.Image]) -> None:
    folder = hf_folder("ViTMAEConfig", "ViTMAEModel", processor="squash", **TOWER, decoder_hidden_size=16)
    encoder = load(folder)
    inputs, features = features_of(encoder, images)
    model = reference(folder, mask_ratio=0.0)
    order = torch.arange(16).expand(len(images), -1)
    out = model(inputs, noise=order, output_hidden_states=True)
    assert {state.shape[1] for state in out.hidden_states} == {17}
    check_hidden(features, out.hidden_states, lambda state: state[:, 0])
    torch.testing.assert_close(features["output"], out.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    _, again = features_of(load(folder), images)
    assert all(torch.equal(again[name], features[name]) for name in features)
    masked = import_library("transformers").AutoConfig.from_pretrained(folder)
    assert encoder.key().encoder["config"] != config_digest(masked)  # features of masked images are no hit


@torch.no_grad()
def test_maps_that_end_in_their_channels(hf_folder: HfFolder, images: list[Image.Image]) -> None:
    settings = {**BLOCKS, **SIZE, "mlp_dim": 64, "output_channels": 24, "window_size": 2, "global_attn_indexes": [2]}
    folder = hf_folder("SamVisionConfig", "SamVisionModel", processor="squash", **settings)
    encoder = load(folder)
    inputs, features = features_of(encoder, images)
    out = reference(folder)(inputs, output_hidden_states=True)
    assert {state.shape[1:] for state in out.hidden_states} == {(4, 4, 32)}
    for number, state in enumerate(out.hidden_states):
        torch.testing.assert_close(features[f"hidden_{number}"], state.mean(dim=(1, 2)), rtol=1e-5, atol=1e-5)
    assert out.last_hidden_state.shape[1:] == (24, 4, 4)  # which the last state does not
    torch.testing.assert_close(features["output"], out.last_hidden_state.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)
    assert encoder.key().encoder["version"] == 2


def test_a_model_of_timm_is_named_with_its_own_family(tmp_path: Path) -> None:
    described = {"architecture": "resnet10t", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"found timm_wrapper, a model of timm; use timm:/"):
        load(tmp_path)
