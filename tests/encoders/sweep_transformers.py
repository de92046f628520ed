"""The conformance sweep over transformers: every type that may encode images or texts, made tiny by its config."""

import tempfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import LoadOptions, parse_spec
from pipeline.encoders.hf_family import is_decoder, is_text_tower, text_encoder, vision_encoder
from pipeline.encoders.libraries import import_library
from pipeline.encoders.torch_encoder import TorchEncoder
from pipeline.errors import UserError
from tests.encoders.conformance import Case, Row, judged, noise, shaken
from tests.encoders.conftest import save_tokenizer

EDGE = 32
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim")
TWO = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_blocks")
FOUR = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads")
HALF = ("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "moe_topk", "attention_window")
INNER = ("intermediate_size", "d_ff", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim")
NARROW = ("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size", "decoder_hidden_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
HEAD = ("head_dim", "d_kv", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "attention_head_size")
RANK = ("kv_lora_rank", "q_lora_rank")
SMALL: dict[str, float] = {
    **dict.fromkeys(WIDTHS, 32),
    **dict.fromkeys(TWO, 2),
    **dict.fromkeys(FOUR, 4),
    **dict.fromkeys(HALF, 2),
    **dict.fromkeys(INNER, 64),
    **dict.fromkeys(NARROW, 16),
    **dict.fromkeys(EXPERTS, 4),
    **dict.fromkeys(HEAD, 8),
    **dict.fromkeys(RANK, 16),
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "image_size": EDGE,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "mask_ratio": 0.0,
}
"""Setting → value; what a config does not have is left out."""

STAGES = ("depths", "hidden_sizes", "num_heads", "num_attention_heads", "embed_dims", "decoder_hidden_sizes")
"""A list in one of these says that a model works in stages, whose sizes depend on each other."""

MOST = 40_000_000
"""Parameters of a model that is worth building."""
TEXTS = ["a dog", "two black dogs run over the grass", "the cat"]


def cases() -> list[Case]:
    """Return a case for every type of model that the library lists for images, masked or causal language, or text."""
    auto = import_library("transformers.models.auto.modeling_auto")
    known = auto.MODEL_MAPPING_NAMES
    pictures = {*auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_MAPPING_NAMES}
    pictures |= {*auto.MODEL_FOR_BACKBONE_MAPPING_NAMES} | {name for name in known if name.endswith("_vision_model")}
    words = {*auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    words |= {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} | {name for name in known if name.endswith("_text_model")}
    kinds = [(name, True) for name in sorted(pictures & {*known})]
    kinds += [(name, False) for name in sorted(words & {*known} - pictures)]
    return [
        Case(library="transformers", family=f"{name} ({'image' if image else 'text'})", run=partial(sweep, name, image))
        for name, image in kinds
    ]


@torch.no_grad()
def sweep(kind: str, image: bool) -> Row:
    """Build a tiny model of a type and compare our encoder of it with the model itself."""
    row = Row(library="transformers", family=f"{kind} ({'image' if image else 'text'})")
    try:
        model = _tiny(kind)
    except Exception as error:  # many kinds want settings of their own
        return Row(**{**vars(row), "verdict": f"not tried: no tiny model by its usual settings ({_short(error)})"})
    row = Row(**{**vars(row), "example": type(model).__name__})
    try:
        _alone(model, image)
    except Exception as error:  # a video model, a tower that wants more than pixels, settings that do not fit
        return Row(**{**vars(row), "verdict": f"not tried: the model itself does not take it ({_short(error)})"})
    try:
        encoder, prepared, theirs = (_image if image else _text)(model)
    except Exception as error:  # `opening` makes one sentence of what the library raises
        return Row(**{**vars(row), "verdict": f"refused: {_short(error)}"})
    output, expected = theirs
    return judged(row, encoder, prepared, expected=expected, output=output)


def _alone(model: Any, image: bool) -> None:
    """Run a model, or the tower of a kind, as the library's own users do."""
    if image:
        getattr(model, "vision_model", model)(pixel_values=noise(EDGE))
    else:
        ids = torch.tensor([[4, 5, 6]])
        getattr(model, "text_model", model)(input_ids=ids, attention_mask=torch.ones_like(ids))


def _tiny(kind: str) -> Any:
    transformers = import_library("transformers")
    config_class = transformers.AutoConfig.for_model(kind).__class__
    config = config_class(**_fitting(config_class))
    with torch.device("meta"):
        size = sum(value.numel() for value in transformers.AutoModel.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{size / 1e6:.0f} million parameters at the least")
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(config).eval()
    return shaken(model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model)


def _fitting(config_class: Any) -> dict[str, Any]:
    """Return the small settings that a config has; of one with two towers those of each."""
    default = config_class()
    towers = {name: getattr(default, name, None) for name in ("vision_config", "text_config")}
    if all(hasattr(tower, "to_dict") for tower in towers.values()):
        return {"projection_dim": 24, **{name: _fitting(type(tower)) for name, tower in towers.items()}}
    known = {name: getattr(default, name, None) for name in {*default.to_dict(), *config_class.attribute_map}}
    listed = {name for name, value in known.items() if isinstance(value, (list, tuple))}
    left_out = {*listed, *(("patch_size", *WIDTHS, *TWO) if listed & {*STAGES} else ())}
    small = {name: value for name, value in SMALL.items() if name in known and name not in left_out}
    return small | ({"image_size": [EDGE, EDGE]} if "image_size" in listed else {})


def _image(model: Any) -> tuple[TorchEncoder, list[Tensor], tuple[Tensor, Mapping[str, Tensor]]]:
    spec, identity = parse_spec("hf:/tiny"), {"version": 1}
    encoder = vision_encoder(spec, LoadOptions(), model, folder=_processor(), identity=identity)
    images = noise(EDGE)
    more: dict[str, Any] = {}
    if model.config.model_type == "vit_mae":
        more = {"noise": torch.arange((EDGE // 8) ** 2).expand(2, -1)}
    out = getattr(model, "vision_model", model)(pixel_values=images, output_hidden_states=True, **more)
    names = {name for name, _ in model.named_parameters()}
    has_class = any(name.endswith(("embeddings.cls_token", "class_embedding")) for name in names)
    hidden = () if encoder.info.refused else out.hidden_states
    expected = {f"hidden_{n}": _pooled(state, model.config, has_class) for n, state in enumerate(hidden)}
    pooled = getattr(out, "pooler_output", None)
    last = _pooled(out.last_hidden_state, model.config, has_class)
    output = last if pooled is None else pooled.flatten(1)
    projection = getattr(model, "visual_projection", None)
    return encoder, list(images), (output if projection is None else projection(output), expected)


def _pooled(state: Tensor, config: Any, has_class: bool) -> Tensor:
    if state.ndim == 4:
        return state.mean(dim=(1, 2) if state.shape[1] == state.shape[2] != state.shape[3] else (2, 3))
    patches = (EDGE // config.patch_size) ** 2 if isinstance(getattr(config, "patch_size", None), int) else 0
    if has_class and state.shape[1] > patches:
        return state[:, 0]
    return state[:, max(0, state.shape[1] - patches) :].mean(dim=1) if patches else state.mean(dim=1)


def _text(model: Any) -> tuple[TorchEncoder, list[Tensor], tuple[Tensor, Mapping[str, Tensor]]]:
    spec, identity = parse_spec("hf:/tiny"), {"version": 1}
    encoder = text_encoder(spec, LoadOptions(), model, folder=_words(), identity=identity)
    prepared = [encoder.prepare(text) for text in TEXTS]
    at_end = is_decoder(model.config) or is_text_tower(model.config)
    rows: list[dict[str, Tensor]] = []
    for ids in prepared:  # one by one: nothing is padded
        fixed = encoder.info.tokenizer.max_length - len(ids) if encoder.info.fixed_length else 0
        padded = torch.nn.functional.pad(ids, (0, fixed))[None]
        mask = {} if fixed else {"attention_mask": torch.ones_like(padded)}
        out = model(input_ids=padded, output_hidden_states=True, **mask)
        states = {} if encoder.info.refused else {f"hidden_{n}": state for n, state in enumerate(out.hidden_states)}
        row = {name: state[0, -1] if at_end else state[0].mean(dim=0) for name, state in states.items()}
        last = out.last_hidden_state[0]
        row["output"] = (
            out.pooler_output[0] if is_text_tower(model.config) else last[-1] if at_end else last.mean(dim=0)
        )
        rows.append(row)
    expected = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return encoder, prepared, (expected.pop("output"), expected)


@cache
def _words() -> Path:
    folder = Path(tempfile.mkdtemp())
    save_tokenizer(folder)
    return folder


@cache
def _processor() -> Path:
    folder = Path(tempfile.mkdtemp())
    import_library("transformers").ViTImageProcessor(size={"height": EDGE, "width": EDGE}).save_pretrained(folder)
    return folder


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:150].strip().replace("|", "/")
