"""`open_clip:NAME/TAG`, `open_clip:/folder` or `open_clip:NAME//path/to/weights`: one tower of a two-tower model.

A folder is open_clip's own form: open_clip_config.json and open_clip_model.safetensors. `--modality` says which tower;
the other is let go. Layers: `embeddings`, `block_1` … `block_L` (convolutional towers: `stage_1` …) and `output`, which
is `encode_image` or `encode_text`, not normalised. Inner layers: class token or patch mean; for texts the token that
the tower itself takes. A pooling that is asked for takes the tokens after the final norm, without the projection.
"""

import inspect
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

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
from pipeline.encoders.libraries import (
    import_library,
    nearest,
    opening,
    require_folder,
    state_sha256,
    weight_files,
    weights_sha256,
)
from pipeline.encoders.taps import Patches, Tap, block_taps, prove, stage_taps, tapped
from pipeline.encoders.timm_family import info_of
from pipeline.encoders.torch_encoder import (
    TOKEN_POOLS,
    Batch,
    ModelInfo,
    Tokens,
    TorchEncoder,
    to_device,
)
from pipeline.errors import UnknownNameError, UserError
from pipeline.files import spaced_json_digest

VERSION = 1
"""Part of the key: goes up when this module changes what comes out."""


def load(spec: Spec, options: LoadOptions) -> TorchEncoder:
    """Load one tower of a model of open_clip.

    Raises:
        UnknownNameError: No such architecture or tag.
        UserError: The modality is not said, or the weights cannot be had.
    """
    if options.modality is None:
        raise UserError(expected="--modality image or --modality text", found="none", where=spec.text)
    folder = require_folder(spec, "open_clip_config.json")
    architecture, tag = _parts(spec)
    file = Path(tag) if tag and Path(tag).is_file() else None
    with opening(spec, "open_clip:/folder with open_clip_config.json, or open_clip:NAME//path/to/weights"):
        library = import_library("open_clip")
        model = library.create_model(architecture, pretrained=tag, require_pretrained=True)
        files = weight_files(folder) if folder else [file] if file else []
        if folder:
            config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
        else:
            config = library.get_model_config(architecture) or architecture
        identity = {
            "family": "open_clip",
            "name": f"{architecture}/local" if file else spec.key_name,
            "tower": options.modality,
            "weights": weights_sha256(files) if files else state_sha256(model.state_dict()),
            "config": spaced_json_digest(config),
            "version": VERSION,
        }
        if options.modality == "image":
            return image_tower(spec, options, model, identity=identity)
        return text_tower(spec, options, model, tokenizer=library.get_tokenizer(architecture), identity=identity)


def _parts(spec: Spec) -> tuple[str, str | None]:
    """Return what open_clip calls architecture and weights: a tag, a path, or None where the folder has them."""
    if spec.folder is not None:
        return f"local-dir:{spec.folder}", None
    if spec.name.startswith("hf-hub:"):
        return spec.name, None
    library = import_library("open_clip")
    architecture, _, weights = spec.name.partition("/")
    if architecture not in library.list_models():
        near = nearest(architecture, library.list_models())
        raise UnknownNameError("model of open_clip", architecture, near, spec.text)
    if weights.startswith(("/", ".", "~")):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(expected=f"a weight file {path}", found="none", where=spec.text)
        return architecture, str(path)
    tags = library.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise UnknownNameError(f"pretrained tag of {architecture}", weights, tags, spec.text)
    return architecture, weights


class ClipImageTower(ImageModel):
    """The image tower of a model of open_clip; `unit` says whether its `encode_image` gives vectors of length 1."""

    model: Any

    def __init__(self, spec: str, model: nn.Module, info: ImageInfo, options: LoadOptions, *, unit: bool) -> None:
        self._unit = unit
        super().__init__(spec, model, info, options)

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        found = _embedding(self, self.model, _final_norm(self.model), batch.inputs["x"], batch.tokens)
        return normalize(found, dim=-1) if self._unit and self.options.pool == "auto" else found, {}


class ClipTextTower(TorchEncoder):
    """The text tower of a model of open_clip, with its own tokenizer, which pads to the full context length."""

    model: Any

    def __init__(self, spec: str, model: nn.Module, info: ModelInfo, options: LoadOptions, *, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        super().__init__(spec, model, info, options)

    def prepare(self, sample: Image.Image | str) -> Tensor:
        """Turn a text into token ids, padded or cut to the context length as open_clip does.

        Raises:
            UserError: The sample is an image.
        """
        if not isinstance(sample, str):
            raise UserError(expected="a text", found=type(sample).__name__, where=self.spec)
        with self._lock:
            ids: Tensor = self.tokenizer([self.options.prompt + sample])[0]
        return ids

    def _collate(self, prepared: Sequence[Tensor]) -> Batch:
        ids = torch.stack(list(prepared))
        ends, about = _ends(text_part(self.model), ids), Tokens()
        if ends is not None:
            mask = torch.arange(ids.shape[1])[None, :] <= ends[:, None]
            about = Tokens(mask=to_device(mask, self.device), ends=to_device(ends, self.device))
        return Batch(inputs={"text": to_device(ids, self.device)}, tokens=about)

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        final = getattr(text_part(self.model), "ln_final", None)
        return _embedding(self, self.model.encode_text, final, batch.inputs["text"], batch.tokens), {}

    def _sample(self) -> Tensor:
        return self.prepare("a")


def image_tower(spec: Spec, options: LoadOptions, model: Any, *, identity: Mapping[str, Any]) -> ClipImageTower:
    """Wrap the image tower of a loaded model."""
    tower = model.visual.eval()
    if getattr(tower, "output_tokens", False):  # CoCa's decoder wants all tokens besides
        tower.output_tokens = False
    unit = inspect.signature(model.encode_image).parameters["normalize"].default is True
    transform = from_open_clip(tower.preprocess_cfg)
    if hasattr(tower, "trunk"):
        info = info_of(tower.trunk, identity, transform)
        info = info if _final_norm(tower) is not None else replace(info, pools=())
    else:
        info = _native_info(tower, identity, transform)
    return ClipImageTower(spec.text, tower, info, options, unit=unit)


def text_tower(
    spec: Spec, options: LoadOptions, model: Any, *, tokenizer: Any, identity: Mapping[str, Any]
) -> ClipTextTower:
    """Wrap the text tower of a loaded model; the image tower is let go.

    Raises:
        UserError: A maximum length is asked that is not the model's.
    """
    length = int(tokenizer.context_length)
    if options.max_length not in (None, length):
        raise UserError(
            expected=f"the context length of {length} tokens that open_clip pads to",
            found=str(options.max_length),
            where="--max-length",
        )
    model.visual = nn.Identity()
    tower = text_part(model)
    blocks = _blocks(tower) if getattr(tower, "cls_emb", None) is None else []
    taps, refused = _text_taps(model, block_taps(blocks), tokenizer)
    info = ModelInfo(
        modality="text",
        taps=taps,
        refused=refused,
        identity=identity,
        preprocessing={"tokenizer": tokenizer_digest(tokenizer), "max_length": length, "prompt": options.prompt},
        pools=("mean", "eos") if blocks else (),
        inner_pool="cls" if _pool_type(tower) == "first" else "eos",
        blocks=blocks,
    )
    return ClipTextTower(spec.text, model, info, options, tokenizer=tokenizer)


def _text_taps(model: Any, declared: Mapping[str, Tap], tokenizer: Any) -> tuple[dict[str, Tap], str]:
    """Return the proven places of a text tower's blocks: all tokens are the library's, the pooling says which count."""
    if not declared:
        return {}, ""

    def theirs(texts: Tensor) -> list[Patches]:
        found = tower.forward_intermediates(text=texts, intermediates_only=True, **form)
        return [(layer, None) for layer in found["text_intermediates"]]

    tower = text_part(model.eval())
    form = {"text_output_fmt" if tower is model else "output_fmt": "NLC"}
    texts = tokenizer(["a", "a photo of two dogs"])
    taps, refused = prove(model, model.encode_text, texts, declared, theirs, class_token=False)
    return {name: replace(tap, reading=None) for name, tap in taps.items()}, refused


def text_part(model: Any) -> Any:
    """Return the module that holds the text tower's parts: the model itself in plain CLIP."""
    return getattr(model, "text", model)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of all words and settings of open_clip's tokenizers."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    words = inner.get_vocab() if hasattr(inner, "get_vocab") else inner.encoder
    cleaning = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "")
    ranks = sorted(f"{pair}" for pair in getattr(inner, "bpe_ranks", ()))
    return spaced_json_digest([type(tokenizer).__name__, words, ranks, cleaning, tokenizer.context_length])


def _native_info(tower: Any, identity: Mapping[str, Any], transform: ImageTransform) -> ImageInfo:
    blocks = _blocks(tower)
    has_class_token = hasattr(tower, "class_embedding")
    stages = [module for name, module in tower.named_children() if name.startswith("layer")]
    has_pools = bool(blocks) and _final_norm(tower) is not None

    def theirs(images: Tensor) -> list[Patches]:
        found = tower.forward_intermediates(images, intermediates_only=True, output_extra_tokens=True)
        layers = found["image_intermediates"][-len(blocks or stages) :]  # a ResNet's stem is none of its stages
        return list(zip(layers, found.get("image_intermediates_prefix", [None] * len(layers)), strict=True))

    declared = block_taps(blocks) or stage_taps(stages)
    images = made_up(transform.output_size)
    taps, refused = prove(tower, tower, images, declared, theirs, class_token=has_class_token)
    return ImageInfo(
        taps=taps,
        refused=refused,
        identity=identity,
        preprocessing=transform.to_json(),
        transform=transform,
        prefix=int(has_class_token),
        pools=token_pools(has_class_token=has_class_token) if has_pools else (),
        maps=not blocks,
        inner_pool="cls" if has_class_token else "patch_mean",
        blocks=blocks or stages,
    )


def _blocks(tower: Any) -> list[nn.Module]:
    return list(getattr(getattr(tower, "transformer", None), "resblocks", ()))


def _final_norm(tower: Any) -> nn.Module | None:
    """Return the norm that all tokens pass last, if they do."""
    if hasattr(tower, "trunk"):
        norm = getattr(tower.trunk, "norm", None)
        return norm if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) else None
    if getattr(tower, "attn_pool", None) is not None or getattr(tower, "final_ln_after_pool", False):
        return None
    return getattr(tower, "ln_post", None)


def _embedding(encoder: TorchEncoder, run: Any, final: nn.Module | None, inputs: Tensor, about: Tokens) -> Tensor:
    """Return the tower's own embedding, or the asked pooling of what its final norm gives."""
    if encoder.options.pool == "auto" or final is None:
        output: Tensor = run(inputs)
        return output
    rule = TOKEN_POOLS[encoder.options.pool]
    with tapped({"final": Tap(module=final)}, lambda tokens, _: rule(tokens, about)) as pooled:
        run(inputs)
    return pooled["final"]


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "argmax"))


def _ends(tower: Any, ids: Tensor) -> Tensor | None:
    """Return the position of the token that the tower takes; nothing where it is simply the first or the last."""
    kind = _pool_type(tower)
    if not _blocks(tower) or kind not in ("argmax", "eos"):
        return None
    if kind == "argmax":
        return ids.argmax(dim=-1)
    end = int(getattr(tower, "text_eos_id", None) or tower.eos_id)
    return ids.eq(end).int().argmax(dim=-1)


def from_open_clip(config: Mapping[str, Any]) -> ImageTransform:
    """Return open_clip's evaluation transform of a preprocess config (`model.visual.preprocess_cfg`)."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    resize: Resize = config.get("resize_mode") or "shortest"
    bilinear = config.get("interpolation") == "bilinear" and (resize != "shortest" or height == width)
    return ImageTransform(
        resize=resize,
        size=(height, width),
        crop=(height, width),
        interpolation="bilinear" if bilinear else "bicubic",
        mean=colour(config["mean"]),
        std=colour(config["std"]),
        fill=(config.get("fill_color") or 0,) * 3 if resize == "longest" else (0, 0, 0),
    )
