"""The conformance sweep over open_clip: every kind of configuration that it carries, with its sizes cut down."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import LoadOptions, Modality, parse_spec
from pipeline.encoders.libraries import import_library
from pipeline.encoders.open_clip_family import image_tower, text_part, text_tower
from pipeline.encoders.torch_encoder import TorchEncoder
from tests.encoders.conformance import Case, Row, judged, noise, shaken

EDGE, CONTEXT, WORDS, END = 32, 12, 49408, 49407
TRUNKS = {
    "convnext": ("test_convnext", EDGE),
    "eva": ("eva02_tiny_patch14_224", 224),
    "fastvit": ("fastvit_t8", 64),
    "swin": ("swin_tiny_patch4_window7_224", 224),
    "vit_relpos": ("test_vit_relpos", 160),
    "vitamin": ("vitamin_small_224", 224),
    "vit": ("vit_tiny_patch16_224", 224),
}
"""How the name of a trunk begins → one of timm's smallest of that kind, and the edge of its images."""
SMALL_TEXT = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 4, "layers": 2}
SIZES = ("image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", *SMALL_TEXT)


def cases() -> list[Case]:
    """Return a case for every kind of tower in the installed open_clip's configurations."""
    kinds: dict[tuple[str, Modality], str] = {}
    for name in sorted(import_library("open_clip").list_models()):
        config = _config(name)
        kinds.setdefault((_kind(config["vision_cfg"]), "image"), name)
        kinds.setdefault((_kind(config["text_cfg"]), "text"), name)
    return [
        Case(library="open_clip", family=f"{modality}: {kind}", run=partial(sweep, name, kind, modality))
        for (kind, modality), name in sorted(kinds.items())
    ]


def _config(name: str) -> dict[str, Any]:
    folder = Path(str(import_library("open_clip").__file__)).parent / "model_configs"
    config: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return config


def _kind(tower: Mapping[str, Any]) -> str:
    """Return what a tower is, without its sizes."""
    if "hf_model_name" in tower:
        return f"transformers ({tower['hf_model_name'].rpartition('/')[2]})"
    if "timm_model_name" in tower:
        trunk = next(start for start in TRUNKS if tower["timm_model_name"].startswith(start))
        return f"timm {trunk}, {tower.get('timm_pool') or 'own'} pool, {tower.get('timm_proj') or 'no'} projection"
    if isinstance(tower.get("layers"), list):
        return "ResNet"
    named = {key: value for key, value in tower.items() if key not in SIZES and "tokenizer" not in key}
    settings = ", ".join(f"{key}={value}" if isinstance(value, str) else key for key, value in sorted(named.items()))
    return f"own{': ' if settings else ''}{settings}"


@torch.no_grad()
def sweep(name: str, kind: str, modality: Modality) -> Row:
    """Build a model cut down and compare our encoder of one of its towers with the model itself."""
    row = Row(library="open_clip", family=f"{modality}: {kind}", example=name)
    config = _config(name)
    if modality == "text" and "hf_model_name" in config["text_cfg"]:
        return Row(**{**vars(row), "verdict": "not tried: its text tower comes from a hub; output alone is offered"})
    model, edge = _cut(config)
    tokenizer = import_library("open_clip").SimpleTokenizer(context_length=CONTEXT)
    options, spec = LoadOptions(modality=modality), parse_spec("open_clip:/tiny")
    if modality == "text":
        text = text_tower(spec, options, model, tokenizer=tokenizer, identity={"version": 1})
        return _judged_text(row, text, model, tokenizer)
    images = noise(edge)
    if getattr(model.visual, "output_tokens", False):
        output = model.encode_image(images)
        encoder = image_tower(spec, options, model, identity={"version": 1})
    else:
        encoder = image_tower(spec, options, model, identity={"version": 1})
        output = model.encode_image(images)
    names = [layer.name for layer in encoder.layers[:-1] if layer.name != "embeddings"]
    maps, prefixes = _intermediates(model.visual, images)
    expected = {}
    for number, layer in enumerate(names, start=len(maps) - len(names)):  # a stem is no stage
        by_token = prefixes[number][:, 0] if prefixes and encoder.info.inner_pool == "cls" else None
        expected[layer] = maps[number].mean(dim=(2, 3)) if by_token is None else by_token
    return judged(row, encoder, list(images), expected=expected, output=output)


def _intermediates(visual: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return [N, D, H, W] maps of all layers, and the tokens before the patches where there are any."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        inner = visual.forward_intermediates(images, intermediates_only=True, output_extra_tokens=True)
        return inner["image_intermediates"], inner.get("image_intermediates_prefix")
    if not getattr(trunk, "num_prefix_tokens", 0):
        return trunk.forward_intermediates(images, intermediates_only=True), None
    pairs = trunk.forward_intermediates(images, intermediates_only=True, return_prefix_tokens=True)
    return [maps for maps, _ in pairs], [prefix for _, prefix in pairs]


def _judged_text(row: Row, encoder: TorchEncoder, model: Any, tokenizer: Any) -> Row:
    ids = tokenizer(["a dog", "two black dogs run"])
    output, names = model.encode_text(ids), [layer.name for layer in encoder.layers[1:-1]]
    if not names:
        return judged(row, encoder, list(ids), expected={}, output=output)
    tower = text_part(model)
    form = {"text_output_fmt" if tower is model else "output_fmt": "NLC"}
    states = tower.forward_intermediates(text=ids, intermediates_only=True, **form)["text_intermediates"]
    kind = str(getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "argmax"))
    rule = {"first": _first, "last": _last}.get(kind, partial(_at_end, ids))
    expected = {name: rule(state) for name, state in zip(names, states, strict=True)}
    return judged(row, encoder, list(ids), expected=expected, output=output)


def _first(state: Tensor) -> Tensor:
    return state[:, 0]


def _last(state: Tensor) -> Tensor:
    return state[:, -1]


def _at_end(ids: Tensor, state: Tensor) -> Tensor:
    return torch.stack([row[row_ids.tolist().index(END)] for row, row_ids in zip(state, ids, strict=True)])


def _cut(config: Mapping[str, Any]) -> tuple[Any, int]:
    """Return a small model of a configuration, and the edge of its images."""
    vision, text, edge = dict(config["vision_cfg"]), dict(config["text_cfg"]), EDGE
    if "timm_model_name" in vision:
        trunk = next(start for start in TRUNKS if vision["timm_model_name"].startswith(start))
        vision["timm_model_name"], edge = TRUNKS[trunk]
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8}
    else:
        vision |= {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.0}
        vision |= {"attn_pooler_heads": 4} if "attn_pooler_heads" in vision else {}
    if "hf_model_name" in text:
        text = {}
    text = {**{key: value for key, value in text.items() if not key.startswith("hf_")}, **SMALL_TEXT}
    text |= {"eos_id": END} if "eos_id" in text else {}
    cut = {**config, "embed_dim": 24, "vision_cfg": {**vision, "image_size": edge}, "text_cfg": text}
    if "multimodal_cfg" in cut:
        cut["multimodal_cfg"] = {**SMALL_TEXT}
    kind = "CoCa" if "multimodal_cfg" in cut else "CustomTextCLIP" if cut.pop("custom_text", False) else "CLIP"
    cut.pop("custom_text", None)
    torch.manual_seed(2)
    model: Any = getattr(import_library("open_clip.model" if kind != "CoCa" else "open_clip.coca_model"), kind)(**cut)
    shaken(model.eval())
    model.visual.preprocess_cfg = {"size": edge, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    return model, edge
