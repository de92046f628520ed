"""The two towers of a model of open_clip.

Layers: `embeddings`, `block_1` … `block_L` (convolutional towers: `stage_1` …) and `output`, which is `encode_image`
or `encode_text`, not normalised. Inner layers: class token or patch mean; for texts the token that the tower itself
takes. A pooling that is asked for takes the tokens after the final norm and leaves the projection out.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.image_model import ImageModel, token_pools
from pipeline.encoders.pooling import TOKEN_POOLS, Tokens
from pipeline.encoders.spec import Spec
from pipeline.encoders.taps import Tap, tapped
from pipeline.encoders.timm_family import plan_for
from pipeline.encoders.torch_encoder import Batch, Plan, TorchEncoder
from pipeline.encoders.transfer import to_device
from pipeline.encoders.transform_sources import from_open_clip
from pipeline.errors import UserError
from pipeline.files import spaced_json_digest


class ClipImageTower(ImageModel):
    """The image tower of a model of open_clip."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return _embedding(self, self.model, _final_norm(self.model), batch.inputs["x"], batch.tokens), {}


class ClipTextTower(TorchEncoder):
    """The text tower of a model of open_clip.

    Args:
        spec: The encoder as the user named it.
        model: A model whose image tower was let go.
        plan: What is known about it.
        options: What the user asked for.
        tokenizer: open_clip's own, which pads to the full context length.
    """

    model: Any

    def __init__(self, spec: str, model: nn.Module, plan: Plan, options: LoadOptions, *, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        super().__init__(spec, model, plan, options)

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
        ends = _ends(text_part(self.model), ids)
        mask = None if ends is None else torch.arange(ids.shape[1])[None, :] <= ends[:, None]
        about = Tokens(
            mask=None if mask is None else to_device(mask, self.device),
            ends=None if ends is None else to_device(ends, self.device),
        )
        return Batch(inputs={"text": to_device(ids, self.device)}, tokens=about)

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        final = getattr(text_part(self.model), "ln_final", None)
        return _embedding(self, self.model.encode_text, final, batch.inputs["text"], batch.tokens), {}

    def _sample(self) -> Tensor:
        return self.prepare("a")


def image_tower(spec: Spec, options: LoadOptions, model: Any, *, identity: Mapping[str, Any]) -> ClipImageTower:
    """Wrap the image tower of a loaded model."""
    tower = model.visual
    transform = from_open_clip(tower.preprocess_cfg)
    if hasattr(tower, "trunk"):
        plan = plan_for(tower.trunk, identity=identity, preprocessing=transform.to_json())
        prefix = int(getattr(tower.trunk, "num_prefix_tokens", 0))
        plan = plan if _final_norm(tower) is not None else replace(plan, pools=())
    else:
        plan, prefix = _native_plan(tower, identity, transform.to_json())
    return ClipImageTower(spec.text, tower, plan, options, transform=transform, prefix=prefix)


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
    pools = ("mean", "eos") if blocks else ()
    plan = Plan(
        modality="text",
        taps=_taps(blocks),
        identity=identity,
        preprocessing={"tokenizer": tokenizer_digest(tokenizer), "max_length": length, "prompt": options.prompt},
        pools=pools,
        inner_pool="cls" if _pool_type(tower) == "first" else "eos",
        blocks=blocks,
    )
    return ClipTextTower(spec.text, model, plan, options, tokenizer=tokenizer)


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


def _native_plan(tower: Any, identity: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> tuple[Plan, int]:
    blocks = _blocks(tower)
    has_class_token = hasattr(tower, "class_embedding")
    prefix = int(has_class_token)
    stages = [module for name, module in tower.named_children() if name.startswith("layer")]
    pools = token_pools(has_class_token=has_class_token) if _final_norm(tower) is not None else ()
    plan = Plan(
        modality="image",
        taps=_taps(blocks) or {f"stage_{number}": Tap(module=stage) for number, stage in enumerate(stages, start=1)},
        identity=identity,
        preprocessing=preprocessing,
        pools=pools if blocks else (),
        maps=not blocks,
        inner_pool="cls" if has_class_token else "patch_mean",
        blocks=blocks or stages,
    )
    return plan, prefix


def _blocks(tower: Any) -> list[nn.Module]:
    return list(getattr(getattr(tower, "transformer", None), "resblocks", ()))


def _taps(blocks: Sequence[nn.Module]) -> dict[str, Tap]:
    taps = {"embeddings": Tap(module=blocks[0], side="input")} if blocks else {}
    return taps | {f"block_{number}": Tap(module=block) for number, block in enumerate(blocks, start=1)}


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
    with tapped({"final": Tap(module=final)}, lambda tokens: rule(tokens, about)) as pooled:
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
