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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
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
from pipeline.encoders.libraries import config_digest, fetch, import_library, opening, weight_files, weights_sha256
from pipeline.encoders.text_model import TextInfo, TextModel, TextTokenizer, length_limit
from pipeline.encoders.torch_encoder import TOKEN_POOLS, Batch, TorchEncoder, global_average
from pipeline.errors import UserError

VERSION = 1
"""Part of the key: goes up when this module changes what comes out."""
AS_SEEN = 2
"""The version of models whose tokens were told by names of parameters before, and wrongly."""

DENSE_POOLERS = ("vit", "deit", "yolos")
"""Vision models whose pooler is a layer that most checkpoints lack: left out, `output` is the class token."""

MASKING = ("vit_mae",)
"""Vision models that hide most patches at random, as in their training: here they see all, in their order."""

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
        _refuse_wrapped(spec, config)
        if config.model_type in MASKING:
            config.mask_ratio = 0.0
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


def _refuse_wrapped(spec: Spec, config: Any) -> None:
    if config.model_type == "timm_wrapper":
        where = f"timm:{spec.name}" if spec.folder else f"timm:hf-hub:{spec.name}"
        found = f"{config.model_type}, a model of timm"
        raise UserError(expected="a model of transformers", found=found, where=spec.text, remedy=f"use {where}")


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
    half = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    alone = half is not None and half.__name__.endswith("EncoderModel")  # a checkpoint may hold this half alone
    loader = transformers.AutoModelForTextEncoding if alone else transformers.AutoModel
    model, info = loader.from_pretrained(folder, **arguments)
    name, missing = type(model).__name__, sorted(info["missing_keys"])
    if missing:
        found = f"none for {len(missing)} tensors, such as {missing[0]}"
        raise UserError(expected=f"weights for all of {name}", found=found, where=spec.text)
    if _has_two_towers(config):
        if not (hasattr(model, "vision_model") and hasattr(model, "text_model")):
            expected = "a model with a vision tower and a text tower, such as CLIP or SigLIP"
            raise UserError(expected=expected, found=name, where=spec.text)
        delattr(model, "text_model" if image else "vision_model")
    return model.get_encoder() if alone or getattr(config, "is_encoder_decoder", False) else model


def _run(encoder: TorchEncoder, tower: Any, asked: Sequence[str], **inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Return what a tower gives, and its hidden states where any are asked for."""
    out = tower(**inputs, output_hidden_states=bool(asked))
    return out, dict(zip(encoder.info.states, out.hidden_states, strict=True)) if asked else {}


class HfVisionEncoder(ImageModel):
    """An image model of transformers, or the image tower of a two-tower model."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        tower = getattr(self.model, "vision_model", self.model)
        out, found = _run(self, tower, states, **_pixels(tower, batch.inputs["x"]))
        return self._embedding(tower, out, batch), found

    def _embedding(self, tower: Any, out: Any, batch: Batch) -> Tensor:
        if self.options.pool != "auto":
            tokens = out.last_hidden_state
            if "clip" in tower.config.model_type and hasattr(tower, "post_layernorm"):
                tokens = tower.post_layernorm(tokens)  # CLIP norms the class token only, after pooling
            return TOKEN_POOLS[self.options.pool](tokens, batch.tokens)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            return self._own(out.last_hidden_state, batch)
        flat: Tensor = pooled.flatten(1)
        projection = getattr(self.model, "visual_projection", None)
        return flat if projection is None else projection(flat)

    def _own(self, last: Tensor, batch: Batch) -> Tensor:
        """Return the embedding of a model that names none: its last state, pooled as its inner layers are."""
        if last.ndim != 4:
            if self.info.refused:
                raise UserError(
                    expected="a model with an embedding of its own", found=self.info.refused, where=self.spec
                )
            return self._reduce(last, batch.tokens)
        channels_last = _channels_last([last], self.info.transform)
        if channels_last is None:
            found = f"{tuple(last.shape[1:])}, which does not say where height and width are"
            raise UserError(expected="maps of the form of the image", found=found, where=self.spec)
        return global_average(last, channels_last=channels_last)


def vision_encoder(
    spec: Spec, options: LoadOptions, model: Any, *, folder: Path, identity: Mapping[str, Any]
) -> HfVisionEncoder:
    """Wrap a loaded image model, or the image tower of a two-tower model."""
    processor = import_library("transformers").AutoImageProcessor.from_pretrained(folder, backend="pil")
    transform = from_processor(processor, where=spec.text)
    tower = getattr(model, "vision_model", model)
    seen = _seen(tower.eval(), transform)
    blocks = hasattr(tower.config, "num_hidden_layers") and hasattr(tower.config, "patch_size")
    as_named = (seen.prefix, seen.class_token, seen.channels_last) == (*_by_name(tower), False)
    info = ImageInfo(
        taps={},
        states=seen.states,
        refused=seen.refused,
        identity=identity if as_named or seen.refused else {**identity, "version": AS_SEEN},
        preprocessing=transform.to_json(),
        transform=transform,
        prefix=seen.prefix,
        pools=token_pools(has_class_token=seen.class_token) if blocks and seen.tokens else (),
        maps=not blocks,
        inner_pool="cls" if seen.class_token else "patch_mean",
        channels_last=seen.channels_last,
    )
    return HfVisionEncoder(spec.text, model, info, options)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What two made-up images show of a tower's hidden states."""

    states: tuple[str, ...] = ()
    """Their names; none where they are refused."""
    refused: str = ""
    """Why they cannot be pooled."""
    tokens: bool = False
    """Whether they are [N, T, D]."""
    prefix: int = 0
    """How many tokens stand before the patches: those that do not yet depend on the image."""
    class_token: bool = False
    """Whether the first of them is a class token."""
    channels_last: bool = False
    """Whether maps are [N, H, W, C]."""


def _seen(tower: Any, transform: ImageTransform) -> _Seen:
    """Look at the hidden states of two made-up images: the library's names of parameters are no proof of a token."""
    with torch.inference_mode():
        out = tower(**_pixels(tower, made_up(transform.output_size)), output_hidden_states=True)
    hidden = getattr(out, "hidden_states", None) or ()
    kinds = {state.ndim for state in hidden}
    states = _names(hidden)
    if not hidden or any(len(state) != 2 for state in hidden):
        return _Seen(refused=f"{type(tower).__name__} hands over no hidden states, one row an image")
    if kinds == {4}:
        last = _channels_last(hidden, transform)
        shapes = ", ".join(str(tuple(state.shape[1:])) for state in hidden[:3])
        if last is None:
            return _Seen(refused=f"maps of {shapes}, which do not say where height and width are")
        return _Seen(states=states, channels_last=last)
    if kinds != {3}:
        return _Seen(refused=f"hidden states of {' and '.join(map(str, sorted(kinds)))} dimensions")
    fixed = torch.isclose(hidden[0][0], hidden[0][1], rtol=1e-5, atol=1e-6).all(dim=-1)
    prefix = int(fixed.int().cumprod(0).sum())
    _, named = _by_name(tower)
    lengths = {state.shape[1] for state in hidden}
    if named and not prefix and len(lengths) > 1:
        return _Seen(refused="a class token that is not there from the first layer on")
    if prefix == len(fixed) or (bool(fixed[prefix:].any()) and not (named and prefix)):
        return _Seen(refused="tokens that do not depend on the image, and none that says which")
    return _Seen(states=states, tokens=not bool(fixed[prefix:].any()), prefix=prefix, class_token=named and prefix > 0)


def _by_name(tower: Any) -> tuple[int, bool]:
    """Return how many tokens stand before the patches by the names of parameters, and whether one is a class token."""
    shapes = {name.rpartition(".")[2]: value.shape for name, value in tower.named_parameters()}
    has_class_token = "cls_token" in shapes or "class_embedding" in shapes
    registers = shapes["register_tokens"][-2] if "register_tokens" in shapes else 0
    return int(has_class_token) + int("distillation_token" in shapes) + int(registers), has_class_token


def _channels_last(states: Sequence[Tensor], transform: ImageTransform) -> bool | None:
    """Tell [N, H, W, C] from [N, C, H, W] by the axes that have the form of the image; None where both may."""
    height, width = transform.output_size
    first = all(state.shape[2] * width == state.shape[3] * height for state in states)
    last = all(state.shape[1] * width == state.shape[2] * height for state in states)
    return last if first != last else None


def _pixels(tower: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the arguments for images; where a model would shuffle and hide patches, with an order that keeps them."""
    if tower.config.model_type not in MASKING:
        return {"pixel_values": images}
    patches = int(tower.embeddings.patch_embeddings.num_patches)
    return {"pixel_values": images, "noise": torch.arange(patches, device=images.device).expand(len(images), -1)}


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
    states, most, refused = _text_states(getattr(model, "text_model", model).eval(), words)
    limit = length_limit(options.max_length, words.model_max_length, positions(config), most)
    tokenizer = TextTokenizer(words, max_length=limit, prompt=options.prompt)
    fixed = config.model_type in FIXED_LENGTH
    at_end = is_decoder(config) or is_text_tower(config)
    info = TextInfo(
        taps={},
        states=states,
        refused=refused,
        identity=identity,
        preprocessing={**tokenizer.to_json(), "padding": "full length" if fixed else "longest"},
        tokenizer=tokenizer,
        fixed_length=fixed,
        pools=DECODER_POOLS if at_end else TEXT_POOLS,
        inner_pool="eos" if at_end else "mean",
    )
    return HfTextEncoder(spec.text, model, info, options)


def _text_states(tower: Any, words: Any) -> tuple[tuple[str, ...], int | None, str]:
    """Return the names of a text model's hidden states, the length that its positions allow, and why there are none."""
    spare = next(
        number for number in range(3) if number not in (words.pad_token_id, getattr(tower.config, "pad_token_id", None))
    )
    ids = torch.full((1, 2), spare)
    with torch.inference_mode(), position_offsets(tower) as room:
        out = tower(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    hidden = getattr(out, "hidden_states", None) or ()
    if not hidden or any(state.shape[:2] != ids.shape for state in hidden):
        return (), min(room, default=None), f"{type(tower).__name__} hands over no hidden states, one vector a token"
    return _names(hidden), min(room, default=None), ""


def _names(hidden: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(f"hidden_{number}" for number in range(len(hidden)))


@contextmanager
def position_offsets(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list that a pass over one text of two tokens fills with the length that each table of positions allows.

    A table is one that is looked up at two numbers in a row. RoBERTa and its kin begin at the padding token's number
    + 1, whatever that number is, and so much less room there is.
    """
    room: list[int] = []

    def look(module: Any, args: tuple[Any, ...]) -> None:
        numbers = args[0].flatten().tolist() if args and isinstance(args[0], Tensor) and args[0].numel() == 2 else []
        if len(numbers) == 2 and numbers[1] == numbers[0] + 1:
            room.append(int(module.num_embeddings) - int(numbers[0]))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(module.register_forward_pre_hook(look))
        yield room


def positions(config: Any) -> int | None:
    """Return how many tokens a model's config allows; what its tables of positions allow may be less."""
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


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
