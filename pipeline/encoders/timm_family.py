"""`timm:NAME` or `timm:/folder`: vision transformers by block, convolutional networks by stage.

A local folder is timm's own form: config.json (`architecture`, `pretrained_cfg`) and model.safetensors.
Layers of a transformer: `embeddings`, `block_1` … `block_L` (the residual stream) and `output`. Layers of a
convolutional network: `stage_1` … `stage_S`, averaged over all places, and `output`. `output` is `model(x)` of a
model without classifier.
"""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Any

from torch import Tensor, nn

from pipeline.encoders.base import LoadOptions, Spec
from pipeline.encoders.image_model import (
    ImageInfo,
    ImageModel,
    ImageTransform,
    Resize,
    colour,
    made_up,
    token_pools,
)
from pipeline.encoders.libraries import import_library, nearest, opening, require_folder, state_sha256
from pipeline.encoders.taps import Patches, Reading, block_taps, prove, stage_taps
from pipeline.encoders.torch_encoder import TOKEN_POOLS, Batch, Tokens
from pipeline.errors import UnknownNameError
from pipeline.files import file_sha256, spaced_json_digest

VERSION = 1
"""Part of the key: goes up when this module changes what comes out."""
AS_PROVEN = 2
"""The version of models whose layers were read by their names before, and wrongly."""


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
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    return build(
        spec,
        options,
        model,
        transform=from_timm(import_library("timm.data").resolve_model_data_config(model)),
        family="timm",
        name=spec.key_name,
        weights=file_sha256(folder / "model.safetensors") if folder else state_sha256(model.state_dict()),
        arguments=config.get("model_args"),
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
    pretrained = getattr(model, "pretrained_cfg", None) or {}
    architecture = str(pretrained.get("architecture") or type(model).__name__)
    config = {"architecture": architecture, "num_features": model.num_features, "arguments": arguments}
    identity = {
        "family": family,
        "name": name,
        "weights": weights,
        "config": spaced_json_digest(config),
        "architecture": architecture,
        "version": VERSION,
    }
    return TimmEncoder(spec.text, model, info_of(model, identity, transform), options)


def info_of(model: Any, identity: Mapping[str, Any], transform: ImageTransform) -> ImageInfo:
    """Say where the layers of a model of timm are: blocks that pass [N, T, D] tokens along, or stages of maps.

    Each is proven: it holds what the model's own `forward_intermediates` gives for two made-up images. The class token
    is taken where all layers have it; where it joins later or is none, the mean over the patches.
    """
    tokens = all(hasattr(model, name) for name in ("blocks", "patch_embed", "num_prefix_tokens"))
    parts = list(model.blocks) if tokens else _stages(model)
    class_token = tokens and getattr(model, "cls_token", None) is not None
    declared = block_taps(parts) if tokens else stage_taps(parts)
    images = made_up(transform.output_size)
    taps, refused = prove(
        model.eval(), model, images, declared, partial(_intermediates, model, tokens), class_token=class_token
    )
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    channels_last = not tokens and getattr(model, "output_fmt", "NCHW") == "NHWC"
    by_name = Reading(
        pool="cls" if class_token else "patch_mean" if tokens else "mean",
        prefix=prefix if tokens else 0,
        channels_last=channels_last,
    )
    if any(tap.reading and not tap.reading.same_as(by_name) for tap in taps.values()) or set(taps) - set(declared):
        identity = {**identity, "version": AS_PROVEN}
    late = class_token and any(tap.reading and tap.reading.pool != "cls" for tap in taps.values())
    return ImageInfo(
        taps=taps,
        identity=identity,
        preprocessing=transform.to_json(),
        transform=transform,
        prefix=prefix,
        pools=token_pools(has_class_token=class_token and not late) if tokens else (),
        maps=not tokens,
        inner_pool="patch_mean" if late else by_name.pool,
        channels_last=channels_last,
        refused=refused,
        blocks=parts,
    )


def _intermediates(model: Any, tokens: bool, images: Tensor) -> list[Patches]:
    """Return what a model's own `forward_intermediates` gives; of stages those that are modules."""
    run = model.forward_intermediates
    asked = {"norm": False, "intermediates_only": True, "output_fmt": "NCHW"}
    if getattr(model, "num_prefix_tokens", 0):
        asked["return_prefix_tokens"] = True
    accepted = inspect.signature(run).parameters
    found = run(images, **{name: value for name, value in asked.items() if name in accepted})
    named = [] if tokens else [bool(stage.get("module")) for stage in _feature_info(model)]
    kept = compress(found, named) if len(named) == len(found) else found
    return [(each[0], each[1]) if isinstance(each, tuple) else (each, None) for each in kept]


def _stages(model: Any) -> list[nn.Module]:
    """Return the modules of timm's list of stages; none where the model has no such list, or other modules."""
    modules = dict(model.named_modules())
    names = [stage["module"] for stage in _feature_info(model) if stage.get("module")]
    return [modules[name] for name in names] if modules.keys() >= set(names) else []


def _feature_info(model: Any) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", [])
    return info if isinstance(info, list) else list(info.get_dicts())


def _create(spec: Spec) -> Any:
    timm = import_library("timm")
    if spec.folder is not None:
        return timm.create_model(f"local-dir:{spec.folder}", pretrained=True, num_classes=0)
    architecture = spec.name.partition(".")[0]
    if not spec.name.startswith("hf-hub:") and not timm.is_model(architecture):
        raise UnknownNameError("model of timm", architecture, nearest(architecture, timm.list_models()), spec.text)
    return timm.create_model(spec.name, pretrained=True, num_classes=0)


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
        fill=tuple(round(255 * value) for value in mean) if mode == "border" else (0, 0, 0),
    )
