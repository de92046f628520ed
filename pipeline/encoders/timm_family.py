"""`timm:NAME` or `timm:/folder`: vision transformers by block, convolutional networks by stage.

A local folder is timm's own form: config.json (`architecture`, `pretrained_cfg`) and model.safetensors.
Layers of a transformer: `embeddings`, `block_1` … `block_L` (the residual stream) and `output`. Layers of a
convolutional network: `stage_1` … `stage_S`, averaged over all places, and `output`. `output` is `model(x)` of a
model without classifier.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.image_model import ImageInfo, ImageModel, token_pools
from pipeline.encoders.libraries import import_library, opening, state_sha256
from pipeline.encoders.pooling import TOKEN_POOLS, Tokens
from pipeline.encoders.spec import Spec, nearest, require_folder
from pipeline.encoders.taps import Tap
from pipeline.encoders.torch_encoder import Batch
from pipeline.encoders.transform import ImageTransform, Resize, colour, fill_of
from pipeline.errors import UnknownNameError
from pipeline.files import file_sha256, spaced_json_digest

VERSION = 1
"""Part of the key: goes up when this module changes what comes out."""


class TimmEncoder(ImageModel):
    """A model of timm without its classifier."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        images = batch.inputs["x"]
        return (self.model(images) if self.options.pool == "auto" else self._pooled(images, batch.tokens)), {}

    def _pooled(self, images: Tensor, about: Tokens) -> Tensor:
        pooled = TOKEN_POOLS[self.options.pool](self.model.forward_features(images), about)
        norm = getattr(self.model, "fc_norm", None)
        if not isinstance(norm, nn.Module) or pooled.shape[1] != self.model.num_features:
            return pooled
        normed: Tensor = norm(pooled)
        return normed


def load(spec: Spec, options: LoadOptions) -> TimmEncoder:
    """Load a model of timm.

    Raises:
        UnknownNameError: timm has no model of that name.
        UserError: The folder lacks a file, or weights cannot be had without a network.
    """
    folder = require_folder(spec, "config.json", "model.safetensors")
    with opening(spec, "timm:/folder with config.json and model.safetensors"):
        model = _create(spec)
    return build(
        spec,
        options,
        model,
        transform=from_timm(import_library("timm.data").resolve_model_data_config(model)),
        family="timm",
        name=spec.key_name,
        weights=file_sha256(folder / "model.safetensors") if folder else state_sha256(model.state_dict()),
        arguments=json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_args")
        if folder
        else None,
    )


def build(
    spec: Spec,
    options: LoadOptions,
    model: nn.Module,
    *,
    transform: ImageTransform,
    family: str,
    name: str,
    weights: str,
    arguments: Mapping[str, Any] | None = None,
) -> TimmEncoder:
    """Wrap a model of timm that already has its weights (also used for weights from packages)."""
    config = {"architecture": _architecture(model), "num_features": model.num_features, "arguments": arguments}
    identity = {
        "family": family,
        "name": name,
        "weights": weights,
        "config": spaced_json_digest(config),
        "architecture": config["architecture"],
        "version": VERSION,
    }
    return TimmEncoder(spec.text, model, info_of(model, identity, transform), options)


def info_of(model: Any, identity: Mapping[str, Any], transform: ImageTransform) -> ImageInfo:
    """Say where the layers of a model of timm are."""
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    if not is_transformer(model):
        modules = [model.get_submodule(info["module"]) for info in feature_info(model)]
        taps = {f"stage_{number}": Tap(module=module) for number, module in enumerate(modules, start=1)}
        return ImageInfo(
            taps=taps,
            identity=identity,
            preprocessing=transform.to_json(),
            transform=transform,
            prefix=prefix,
            maps=True,
            channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
            blocks=modules,
        )
    blocks = list(model.blocks)
    class_token = getattr(model, "cls_token", None) is not None
    taps = {"embeddings": Tap(module=blocks[0], side="input")}
    taps |= {f"block_{number}": Tap(module=block) for number, block in enumerate(blocks, start=1)}
    return ImageInfo(
        taps=taps,
        identity=identity,
        preprocessing=transform.to_json(),
        transform=transform,
        prefix=prefix,
        pools=token_pools(has_class_token=class_token),
        inner_pool="cls" if class_token else "patch_mean",
        blocks=blocks,
    )


def is_transformer(model: Any) -> bool:
    """Return whether the model's blocks pass [N, T, D] tokens along."""
    return hasattr(model, "blocks") and hasattr(model, "patch_embed") and hasattr(model, "num_prefix_tokens")


def feature_info(model: Any) -> list[dict[str, Any]]:
    """Return timm's list of stages, each with the name of its module; nothing where the model has no such list."""
    info = getattr(model, "feature_info", [])
    stages = info if isinstance(info, list) else info.get_dicts()
    return [stage for stage in stages if stage.get("module")]


def _create(spec: Spec) -> Any:
    timm = import_library("timm")
    if spec.folder is not None:
        return timm.create_model(f"local-dir:{spec.folder}", pretrained=True, num_classes=0)
    architecture = spec.name.partition(".")[0]
    if not spec.name.startswith("hf-hub:") and not timm.is_model(architecture):
        raise UnknownNameError("model of timm", architecture, nearest(architecture, timm.list_models()), spec.text)
    return timm.create_model(spec.name, pretrained=True, num_classes=0)


def _architecture(model: Any) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def from_timm(config: Mapping[str, Any]) -> ImageTransform:
    """Return timm's evaluation transform of a data config (`timm.data.resolve_model_data_config`)."""
    height, width = (int(edge) for edge in config["input_size"][1:])
    percent = float(config.get("crop_pct") or 0.875)
    mode = str(config.get("crop_mode") or "center")
    resizes: dict[str, Resize] = {"squash": "squash", "border": "longest"}
    mean = colour(config["mean"])
    return ImageTransform(
        resize=resizes.get(mode, "shortest"),
        size=(math.floor(height / percent), math.floor(width / percent)),
        crop=(height, width),
        interpolation=str(config["interpolation"]),
        mean=mean,
        std=colour(config["std"]),
        fill=fill_of([round(255 * value) for value in mean]) if mode == "border" else (0, 0, 0),
    )
