"""timm: output equals the model without classifier, every layer equals timm's own intermediate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.encoders.libraries import import_library
from pipeline.encoders.load import load_encoder
from pipeline.encoders.timm_family import TimmEncoder
from pipeline.errors import UnknownNameError, UserError

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 20]}
TimmFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def vit(timm_folder: TimmFolder) -> Path:
    return timm_folder("vit_tiny_patch16_224", VIT)


def load(folder: Path, **options: Any) -> TimmEncoder:
    encoder = load_encoder(f"timm:{folder}", **options)
    assert isinstance(encoder, TimmEncoder)
    return encoder


def reference(folder: Path) -> Any:
    return import_library("timm").create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()


def batch(encoder: TimmEncoder, images: list[Image.Image]) -> list[torch.Tensor]:
    return [encoder.prepare(image) for image in images]


def test_transformer_layers_are_the_residual_stream(vit: Path, images: list[Image.Image]) -> None:
    encoder, model = load(vit), reference(vit)
    assert [layer.name for layer in encoder.layers] == ["embeddings", "block_1", "block_2", "block_3", "output"]
    assert {layer.width for layer in encoder.layers} == {32}
    prepared = batch(encoder, images)
    features = encoder.encode(prepared, encoder.resolve_layers("all"))
    with torch.no_grad():
        inputs = torch.stack(prepared)
        expected = model.forward_intermediates(inputs, return_prefix_tokens=True, intermediates_only=True)
        torch.testing.assert_close(features["output"], model(inputs), rtol=1e-5, atol=1e-5)
        start = model.norm_pre(model._pos_embed(model.patch_embed(inputs)))
    torch.testing.assert_close(features["embeddings"], start[:, 0], rtol=1e-5, atol=1e-5)
    for number, (_, prefix) in enumerate(expected, start=1):
        torch.testing.assert_close(features[f"block_{number}"], prefix[:, 0], rtol=1e-5, atol=1e-5)


def test_prepared_pixels_are_timms(vit: Path, images: list[Image.Image]) -> None:
    data = import_library("timm.data")
    transform = data.create_transform(**data.resolve_model_data_config(reference(vit)), is_training=False)
    for image in images:
        torch.testing.assert_close(load(vit).prepare(image), transform(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("architecture", "arguments", "stages"),
    [("convnext_atto", CONVNEXT, 4), ("resnet10t", {}, 5), ("tf_efficientnet_lite0", {}, 5)],
)
def test_networks_of_stages(
    timm_folder: TimmFolder, images: list[Image.Image], architecture: str, arguments: dict[str, Any], stages: int
) -> None:
    folder = timm_folder(architecture, arguments)
    encoder, model = load(folder), reference(folder)
    assert [layer.name for layer in encoder.layers] == [*(f"stage_{n}" for n in range(1, stages + 1)), "output"]
    prepared = batch(encoder, images)
    features = encoder.encode(prepared, encoder.resolve_layers("all"))
    with torch.no_grad():
        torch.testing.assert_close(features["output"], model(torch.stack(prepared)), rtol=1e-5, atol=1e-5)
        maps = model.forward_intermediates(torch.stack(prepared), intermediates_only=True)
    for number, stage in enumerate(maps, start=1):
        torch.testing.assert_close(features[f"stage_{number}"], stage.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


def test_channels_last_stages(timm_folder: TimmFolder, images: list[Image.Image]) -> None:
    arguments = {
        "img_size": 32,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 4),
        "window_size": 4,
        "patch_size": 2,
    }
    folder = timm_folder("swin_tiny_patch4_window7_224", arguments)
    encoder, model = load(folder), reference(folder)
    prepared = batch(encoder, images)
    features = encoder.encode(prepared, encoder.resolve_layers("all"))
    with torch.no_grad():
        maps = model.forward_intermediates(torch.stack(prepared), intermediates_only=True)
    torch.testing.assert_close(features["stage_2"], maps[1].mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean", "patch_mean", "cls+patch_mean"])
def test_a_pooling_takes_the_normed_tokens(vit: Path, images: list[Image.Image], pool: str) -> None:
    encoder, model = load(vit, pool=pool), reference(vit)
    prepared = batch(encoder, images)
    output = encoder.encode(prepared, ["output"])["output"]
    with torch.no_grad():
        tokens = model.forward_features(torch.stack(prepared))
    vectors = {"cls": tokens[:, 0], "mean": tokens.mean(1), "patch_mean": tokens[:, 1:].mean(1)}
    expected = torch.cat([vectors[name] for name in pool.split("+")], dim=1)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert encoder.width("block_1") == expected.shape[1]


def test_a_transformer_without_class_token_is_averaged(timm_folder: TimmFolder, images: list[Image.Image]) -> None:
    arguments = {**VIT, "class_token": False, "global_pool": "avg", "reg_tokens": 2}
    folder = timm_folder("vit_tiny_patch16_224", arguments)
    encoder, model = load(folder), reference(folder)
    prepared = batch(encoder, images)
    features = encoder.encode(prepared, ["block_2", "output"])
    with torch.no_grad():
        torch.testing.assert_close(features["output"], model(torch.stack(prepared)), rtol=1e-5, atol=1e-5)
        maps = model.forward_intermediates(torch.stack(prepared), intermediates_only=True)
    torch.testing.assert_close(features["block_2"], maps[1].mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)
    explicit = load(folder, pool="patch_mean").encode(prepared, ["output"])["output"]
    torch.testing.assert_close(explicit, features["output"], rtol=1e-5, atol=1e-5)


def test_a_pooling_that_cannot_be_lists_those_that_can(timm_folder: TimmFolder, vit: Path) -> None:
    with pytest.raises(UserError, match=r"expected one of auto, cls, mean, patch_mean, .*found eos"):
        load(vit, pool="eos")
    with pytest.raises(UserError, match="expected one of auto, found cls"):
        load(timm_folder("resnet10t", {}), pool="cls")


def test_an_unknown_model_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet50'"):
        load_encoder("timm:resnet5O")


def test_a_hub_model_without_network_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"in the local cache or on its hub, found neither .*give a local path: timm:/folder"
    ):
        load_encoder("timm:vit_tiny_patch16_224.augreg_in21k")


def test_a_damaged_folder_is_one_sentence(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="expected a readable model in"):
        load(tmp_path)
