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


LATE = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4}
STAGES = {"img_size": 64, "embed_dims": (16, 32, 32, 48), "num_heads": (1, 2, 2, 4)}
TWINS = {"depths": (1, 1, 1, 1), "wss": (4, 4, 2, 2), "sr_ratios": (4, 2, 1, 1)}
BY_THE_LIBRARY: dict[str, tuple[str, dict[str, Any], int]] = {
    "maps that are [N, H, W, C] unsaid": ("volo_d1_224", {"img_size": 32}, 2),
    "a class token that joins late": ("xcit_nano_12_p16_224", LATE, 2),
    "a class token that joins at the end": ("cait_xxs24_224", {**LATE, "depth_token_only": 1}, 2),
    "stages that are no modules of their names": ("twins_svt_small", {**STAGES, **TWINS}, 2),
    "blocks that pass maps": ("samvit_base_patch16_224", {**LATE, "patch_size": 8, "window_size": 2}, 2),
    "tokens as they are": ("vit_tiny_patch16_224", VIT, 1),
}
"""What names of modules do not tell → (model, arguments, version of its key)."""


@pytest.mark.parametrize("kind", BY_THE_LIBRARY)
def test_layers_are_what_the_library_calls_its_intermediates(
    timm_folder: TimmFolder, images: list[Image.Image], kind: str
) -> None:
    architecture, arguments, version = BY_THE_LIBRARY[kind]
    folder = timm_folder(architecture, arguments)
    encoder, model = load(folder), reference(folder)
    prepared = batch(encoder, images)
    features = encoder.encode(prepared, encoder.resolve_layers("all"))
    inner = [name for name in features if name not in ("embeddings", "output")]
    with torch.no_grad():
        torch.testing.assert_close(features["output"], model(torch.stack(prepared)), rtol=1e-5, atol=1e-5)
        maps = model.forward_intermediates(torch.stack(prepared), intermediates_only=True)
    assert len(inner) == len(maps)
    for name, layer in zip(inner, maps, strict=True):
        if encoder.info.inner_pool != "cls":
            torch.testing.assert_close(features[name], layer.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)
    assert encoder.key().encoder["version"] == version  # what was right before keeps its key
    assert ("cls" in encoder.key().pooling) == (kind == "tokens as they are")


def test_layers_that_cannot_be_proven_are_refused_in_one_sentence(
    timm_folder: TimmFolder, images: list[Image.Image]
) -> None:
    folder = timm_folder("tnt_s_patch16_224", {"img_size": 32, "embed_dim": 48, "inner_dim": 8, "depth": 2})
    encoder, model = load(folder), reference(folder)
    for expression in ("all", "0", "block_1", "last,1"):
        with pytest.raises(
            UserError, match=r"inner layers of timm.* proven .*no module that holds .*stage_1.*--layers last takes"
        ):
            encoder.resolve_layers(expression)
    prepared = batch(encoder, images)
    for expression in ("last", "-1", "output"):
        output = encoder.encode(prepared, encoder.resolve_layers(expression))["output"]
        with torch.no_grad():
            torch.testing.assert_close(output, model(torch.stack(prepared)), rtol=1e-5, atol=1e-5)


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
