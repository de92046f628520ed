"""`hf:ORG/NAME@REVISION` or `hf:/folder`: models of transformers, of images and of texts.

Layers: `hidden_0` … `hidden_L` are the library's `hidden_states[l]`, pooled, and `output`. Whether the last hidden
state is normed is as the library has it: for DINOv2 `hidden_L` comes before the final norm, for decoders such as
Llama and GPT-2 after it. Of a two-tower model (CLIP, SigLIP) one tower is kept; `--modality` says which.

Images (DINOv2, ViT, CLIP, SigLIP, ConvNeXT, ResNet and their like): `output` is the library's own embedding: the
projected one of CLIP, the attention head's of SigLIP, the pooled one of ConvNeXT and ResNet, the class token after the
final norm of DINOv2 and ViT. Inner layers: the class token, or the mean over patches where there is none; maps are
averaged over all places.

Texts (the BERT family, decoders such as Llama and GPT-2, text towers of CLIP and SigLIP): `output` is an encoder's last
hidden state, averaged over the real tokens; a decoder's last hidden state at the text's last token; a text tower's own
embedding (projected for CLIP). Inner layers are pooled by the same rule, those of text towers at the last token.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.encoders.base import LoadOptions, Spec
from pipeline.encoders.image_model import ImageInfo, ImageModel, ImageTransform, Resize, colour, token_pools
from pipeline.encoders.libraries import config_digest, fetch, import_library, opening, weight_files, weights_sha256
from pipeline.encoders.text_model import TextInfo, TextModel, TextTokenizer, length_limit
from pipeline.encoders.torch_encoder import TOKEN_POOLS, Batch, TorchEncoder
from pipeline.errors import UserError

VERSION = 1
"""Part of the key: goes up when this module changes what comes out."""

DENSE_POOLERS = ("vit", "deit", "yolos")
"""Vision models whose pooler is a layer that most checkpoints lack: left out, `output` is the class token."""

TEXT_POOLS = ("cls", "mean", "eos")
DECODER_POOLS = ("mean", "eos")
"""Without the first token, which has seen nothing but itself."""

FIXED_LENGTH = ("siglip_text_model", "siglip2_text_model")
"""Text towers that were trained on texts padded to the full length, without a mask."""


def load(spec: Spec, options: LoadOptions) -> ImageModel | TextModel:
    """Load a model of transformers, or one tower of it.

    Raises:
        UserError: Weights cannot be had, do not cover the model, or the modality of a two-tower model is not said.
    """
    with opening(spec, "hf:/folder with config.json and model.safetensors"):
        folder = fetch(spec, "config.json")
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
    """Return the model; of one with two towers the tower that is not asked for is let go."""
    transformers = import_library("transformers")
    arguments: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    model_class = transformers.MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, (list, tuple)):
        model_class = model_class[0]
    accepts = model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    if accepts and (not image or config.model_type in DENSE_POOLERS):
        arguments["add_pooling_layer"] = False
    model, info = transformers.AutoModel.from_pretrained(folder, **arguments)
    name, missing = type(model).__name__, sorted(info["missing_keys"])
    if missing:
        found = f"none for {len(missing)} tensors, such as {missing[0]}"
        raise UserError(expected=f"weights for all of {name}", found=found, where=spec.text)
    if _has_two_towers(config):
        if not (hasattr(model, "vision_model") and hasattr(model, "text_model")):
            expected = "a model with a vision tower and a text tower, such as CLIP or SigLIP"
            raise UserError(expected=expected, found=name, where=spec.text)
        delattr(model, "text_model" if image else "vision_model")
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def _run(encoder: TorchEncoder, tower: Any, asked: Sequence[str], **inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Return what a tower gives, and its hidden states where any are asked for."""
    out = tower(**inputs, output_hidden_states=bool(asked))
    return out, dict(zip(encoder.info.states, out.hidden_states, strict=True)) if asked else {}


class HfVisionEncoder(ImageModel):
    """An image model of transformers, or the image tower of a two-tower model."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        tower = getattr(self.model, "vision_model", self.model)
        out, found = _run(self, tower, states, pixel_values=batch.inputs["x"])
        return self._embedding(tower, out, batch), found

    def _embedding(self, tower: Any, out: Any, batch: Batch) -> Tensor:
        if self.options.pool != "auto":
            tokens = out.last_hidden_state
            if "clip" in tower.config.model_type and hasattr(tower, "post_layernorm"):
                tokens = tower.post_layernorm(tokens)  # CLIP norms the class token only, after pooling
            return TOKEN_POOLS[self.options.pool](tokens, batch.tokens)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            return self._reduce(out.last_hidden_state, batch.tokens)
        flat: Tensor = pooled.flatten(1)
        projection = getattr(self.model, "visual_projection", None)
        return flat if projection is None else projection(flat)


def vision_encoder(
    spec: Spec, options: LoadOptions, model: Any, *, folder: Path, identity: Mapping[str, Any]
) -> HfVisionEncoder:
    """Wrap a loaded image model, or the image tower of a two-tower model."""
    processor = import_library("transformers").AutoImageProcessor.from_pretrained(folder, backend="pil")
    transform = from_processor(processor, where=spec.text)
    tower = getattr(model, "vision_model", model)
    has_blocks = hasattr(tower.config, "num_hidden_layers")
    depth = int(tower.config.num_hidden_layers) if has_blocks else len(tower.config.depths)
    prefix, has_class_token = _prefix(tower)
    pools = token_pools(has_class_token=has_class_token) if has_blocks and hasattr(tower.config, "patch_size") else ()
    info = ImageInfo(
        taps={},
        states=tuple(f"hidden_{number}" for number in range(depth + 1)),
        identity=identity,
        preprocessing=transform.to_json(),
        transform=transform,
        prefix=prefix,
        pools=pools,
        maps=not pools,
        inner_pool="cls" if has_class_token else "patch_mean",
    )
    return HfVisionEncoder(spec.text, model, info, options)


def _prefix(tower: Any) -> tuple[int, bool]:
    """Return how many tokens stand before the patches, and whether the first is a class token."""
    shapes = {name.rpartition(".")[2]: value.shape for name, value in tower.named_parameters()}
    has_class_token = "cls_token" in shapes or "class_embedding" in shapes
    registers = shapes["register_tokens"][-2] if "register_tokens" in shapes else 0
    return int(has_class_token) + int("distillation_token" in shapes) + int(registers), has_class_token


class HfTextEncoder(TextModel):
    """A text model of transformers, or the text tower of a two-tower model."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        tower = getattr(self.model, "text_model", self.model)
        out, found = _run(self, tower, states, **batch.inputs)
        return self._embedding(tower, out, batch), found

    def _embedding(self, tower: Any, out: Any, batch: Batch) -> Tensor:
        if self.options.pool != "auto" or not is_text_tower(tower.config):
            return self._reduce(out.last_hidden_state, batch.tokens)
        pooled: Tensor = out.pooler_output
        projection = getattr(self.model, "text_projection", None)
        return pooled if projection is None else projection(pooled)


def text_encoder(
    spec: Spec, options: LoadOptions, model: Any, *, folder: Path, identity: Mapping[str, Any]
) -> HfTextEncoder:
    """Wrap a loaded text model, or the text tower of a two-tower model."""
    config = getattr(model, "text_model", model).config
    words = import_library("transformers").AutoTokenizer.from_pretrained(folder)
    limit = length_limit(options.max_length, words.model_max_length, positions(config))
    tokenizer = TextTokenizer(words, max_length=limit, prompt=options.prompt)
    fixed = config.model_type in FIXED_LENGTH
    at_end = is_decoder(config) or is_text_tower(config)
    info = TextInfo(
        taps={},
        states=tuple(f"hidden_{number}" for number in range(int(config.num_hidden_layers) + 1)),
        identity=identity,
        preprocessing={**tokenizer.to_json(), "padding": "full length" if fixed else "longest"},
        tokenizer=tokenizer,
        fixed_length=fixed,
        pools=DECODER_POOLS if at_end else TEXT_POOLS,
        inner_pool="eos" if at_end else "mean",
    )
    return HfTextEncoder(spec.text, model, info, options)


def positions(config: Any) -> int | None:
    """Return how many tokens a model's positions allow; the RoBERTa family keeps two of them for itself."""
    limit = getattr(config, "max_position_embeddings", None)
    shifted = config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text")
    return limit - 2 if limit and shifted else limit


def is_text_tower(config: Any) -> bool:
    """Return whether a config is of the text half of a two-tower model."""
    return str(config.model_type).endswith("_text_model")


def is_decoder(config: Any) -> bool:
    """Return whether a model reads from left to right only: its checkpoint says so, or its kind always does."""
    names = getattr(config, "architectures", None) or []
    if getattr(config, "is_decoder", False) or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return True
    models = import_library("transformers.models.auto.modeling_auto")
    causal, masked = models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, models.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in causal and config.model_type not in masked


def from_processor(processor: Any, *, where: str) -> ImageTransform:
    """Return the transform that does what a processor does.

    Args:
        processor: An image processor with the PIL backend.
        where: The encoder, for errors.

    Raises:
        UserError: The processor does something that a transform cannot do.
    """
    size = {name: int(value) for name, value in dict(processor.size or {}).items() if value}
    crop: tuple[int, int] | None = None
    if getattr(processor, "do_center_crop", False):
        edges = dict(processor.crop_size)
        crop = int(edges["height"]), int(edges["width"])
    resize: Resize
    edge = size.get("shortest_edge", 1)
    if "shortest_edge" in size and getattr(processor, "crop_pct", None):  # ConvNeXt's own rule
        larger = int(edge / processor.crop_pct)
        resize, aim, crop = (
            ("squash", (edge, edge), None) if edge >= 384 else ("shortest", (larger, larger), (edge, edge))
        )
    elif not processor.do_resize or set(size) == {"shortest_edge"}:
        if crop is None:
            raise UserError(expected="images of one size", found=f"{processor.size} without a crop", where=where)
        resize, aim = "shortest" if processor.do_resize else "none", (edge, edge)
    elif {"height", "width"} <= set(size):
        resize, aim = "squash", (size["height"], size["width"])
    else:
        raise UserError(expected="a size of height and width, or of the shortest edge", found=str(size), where=where)
    resampling = Image.Resampling.BILINEAR if processor.resample is None else Image.Resampling(processor.resample)
    transform = ImageTransform(
        resize=resize,
        size=aim,
        crop=crop,
        rounding="floor",
        interpolation=resampling.name.lower(),
        mean=colour(processor.image_mean if processor.do_normalize else 0),
        std=colour(processor.image_std if processor.do_normalize else 1),
        divisor=round(1 / processor.rescale_factor, 9) if processor.do_rescale else 1.0,
    )
    _prove(transform, processor, where)
    return transform


def _prove(transform: ImageTransform, processor: Any, where: str) -> None:
    height, width = transform.output_size
    pixels = np.random.default_rng(0).integers(0, 256, (2 * height + 3, 3 * width + 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
    ours = transform(image)
    if theirs.shape != ours.shape or not torch.allclose(theirs.float(), ours, atol=1e-4):
        raise UserError(
            expected="an image processor that resizes, crops and normalises",
            found=f"{type(processor).__name__}, which does something else",
            where=where,
            remedy="write an encoder of your own (module:Class) around it",
        )
