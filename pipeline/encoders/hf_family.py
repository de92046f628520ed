"""`hf:ORG/NAME@REVISION` or `hf:/folder`: models of transformers, of images (`hf_vision`) and of texts (`hf_text`).

Layers: `hidden_0` … `hidden_L` are the library's `hidden_states[l]`, pooled, and `output`. Whether the last hidden
state is normed is as the library has it: for DINOv2 `hidden_L` comes before the final norm, for decoders such as
Llama and GPT-2 after it. Of a two-tower model (CLIP, SigLIP) one tower is kept; `--modality` says which.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.digest import weight_files, weights_sha256
from pipeline.encoders.hf_text import HfTextEncoder, text_encoder
from pipeline.encoders.hf_vision import HfVisionEncoder, vision_encoder
from pipeline.encoders.hub import fetch, opening
from pipeline.encoders.libraries import import_library
from pipeline.encoders.spec import Spec, require_folder
from pipeline.errors import UserError
from pipeline.files import spaced_json_digest

VERSION = 1
"""Part of the key: goes up when this module, `hf_text` or `hf_vision` changes what comes out."""

DENSE_POOLERS = ("vit", "deit", "yolos")
"""Vision models whose pooler is a layer that most checkpoints lack: left out, `output` is the class token."""

VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "use_cache")
"""Fields of a config that do not change what comes out."""


def load(spec: Spec, options: LoadOptions) -> HfVisionEncoder | HfTextEncoder:
    """Load a model of transformers, or one tower of it.

    Raises:
        UserError: Weights cannot be had, do not cover the model, or the modality of a two-tower model is not said.
    """
    require_folder(spec, "config.json")
    with opening(spec, "hf:/folder with config.json and model.safetensors"):
        folder = fetch(spec)
        config = import_library("transformers").AutoConfig.from_pretrained(folder)
        image = _is_image(spec, options, config)
        model = _model(spec, folder, config, image=image)
        identity = {
            "family": "hf",
            "name": spec.key_name,
            "weights": weights_sha256(weight_files(folder)),
            "config": config_digest(config),
            "architecture": type(model).__name__,
            "version": VERSION,
        }
        build = vision_encoder if image else text_encoder
        return build(spec, options, model, folder=folder, identity=identity)


def config_digest(config: Any) -> str:
    """Return the digest of a config without the fields that do not change what comes out."""
    return spaced_json_digest(_steady(config.to_dict()))


def _steady(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in VOLATILE}
    return {name: _steady(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _is_image(spec: Spec, options: LoadOptions, config: Any) -> bool:
    if not _has_two_towers(config):
        return hasattr(config, "num_channels") or hasattr(config, "image_size")
    if options.modality is None:
        raise UserError(
            expected="--modality image or --modality text",
            found=f"none, and {config.model_type} has two towers",
            where=spec.text,
        )
    return options.modality == "image"


def _has_two_towers(config: Any) -> bool:
    return hasattr(config, "vision_config") and hasattr(config, "text_config")


def _model(spec: Spec, folder: Path, config: Any, *, image: bool) -> Any:
    transformers = import_library("transformers")
    arguments: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    model_class = transformers.MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, (list, tuple)):
        model_class = model_class[0]
    accepts = model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    if accepts and (not image or config.model_type in DENSE_POOLERS):
        arguments["add_pooling_layer"] = False
    model, info = transformers.AutoModel.from_pretrained(folder, **arguments)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            expected=f"weights for all of {type(model).__name__}",
            found=f"none for {len(missing)} tensors, such as {missing[0]}",
            where=spec.text,
        )
    if _has_two_towers(config):
        _require_towers(spec, model)
    if getattr(config, "is_encoder_decoder", False):
        return model.get_encoder()
    return model


def _require_towers(spec: Spec, model: Any) -> None:
    if not (hasattr(model, "vision_model") and hasattr(model, "text_model")):
        raise UserError(
            expected="a model with a vision tower and a text tower, such as CLIP or SigLIP",
            found=type(model).__name__,
            where=spec.text,
        )
