"""Image models of transformers: DINOv2, ViT, CLIP, SigLIP, ConvNeXT, ResNet and their like.

`output` is the library's own embedding: the projected one of CLIP, the attention head's of SigLIP, the pooled one
of ConvNeXT and ResNet, the class token after the final norm of DINOv2 and ViT. Inner layers: the class token, or the
mean over patches where there is none; maps are averaged over all places.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.image_model import ImageModel, token_pools
from pipeline.encoders.libraries import import_library
from pipeline.encoders.pooling import TOKEN_POOLS
from pipeline.encoders.spec import Spec
from pipeline.encoders.torch_encoder import Batch, Plan
from pipeline.encoders.transform_hf import from_processor


class HfVisionEncoder(ImageModel):
    """An image model of transformers, or the image tower of a two-tower model."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        tower = getattr(self.model, "vision_model", self.model)
        out = tower(pixel_values=batch.inputs["x"], output_hidden_states=bool(states))
        found = dict(zip(self.plan.states, out.hidden_states, strict=True)) if states else {}
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
    """Wrap a loaded image model; of a two-tower model the text tower is let go."""
    if hasattr(model, "vision_model") and hasattr(model, "text_model"):
        del model.text_model
    processor = import_library("transformers").AutoImageProcessor.from_pretrained(folder, backend="pil")
    transform = from_processor(processor, where=spec.text)
    tower = getattr(model, "vision_model", model)
    prefix, has_class_token = _prefix(tower)
    pools = token_pools(has_class_token=has_class_token) if _has_patches(tower) else ()
    plan = Plan(
        modality="image",
        taps={},
        states=tuple(f"hidden_{number}" for number in range(_depth(tower.config) + 1)),
        identity=identity,
        preprocessing=transform.to_json(),
        pools=pools,
        maps=not pools,
        inner_pool="cls" if has_class_token else "patch_mean",
    )
    return HfVisionEncoder(spec.text, model, plan, options, transform=transform, prefix=prefix)


def _has_patches(tower: Any) -> bool:
    return hasattr(tower.config, "patch_size") and hasattr(tower.config, "num_hidden_layers")


def _depth(config: Any) -> int:
    return int(config.num_hidden_layers) if hasattr(config, "num_hidden_layers") else len(config.depths)


def _prefix(tower: Any) -> tuple[int, bool]:
    """Return how many tokens stand before the patches, and whether the first is a class token."""
    shapes = {name.rpartition(".")[2]: value.shape for name, value in tower.named_parameters()}
    has_class_token = "cls_token" in shapes or "class_embedding" in shapes
    registers = shapes["register_tokens"][-2] if "register_tokens" in shapes else 0
    return int(has_class_token) + int("distillation_token" in shapes) + int(registers), has_class_token
