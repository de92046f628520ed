"""Text models of transformers: the BERT family, decoders such as Llama and GPT-2, text towers of CLIP and SigLIP.

`output`: an encoder's last hidden state, averaged over the real tokens; a decoder's last hidden state at the text's
last token; a text tower's own embedding (projected for CLIP). Inner layers are pooled by the same rule, those of text
towers at the last token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.libraries import import_library
from pipeline.encoders.spec import Spec
from pipeline.encoders.text_model import DECODER_POOLS, TEXT_POOLS, TextModel
from pipeline.encoders.tokenizer import TextTokenizer, length_limit
from pipeline.encoders.torch_encoder import Batch, Plan

FIXED_LENGTH = ("siglip_text_model", "siglip2_text_model")
"""Text towers that were trained on texts padded to the full length, without a mask."""


class HfTextEncoder(TextModel):
    """A text model of transformers, or the text tower of a two-tower model."""

    model: Any

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        tower = getattr(self.model, "text_model", self.model)
        out = tower(**batch.inputs, output_hidden_states=bool(states))
        found = dict(zip(self.plan.states, out.hidden_states, strict=True)) if states else {}
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
    """Wrap a loaded text model; of a two-tower model the image tower is let go."""
    if hasattr(model, "vision_model") and hasattr(model, "text_model"):
        del model.vision_model
    config = getattr(model, "text_model", model).config
    words = import_library("transformers").AutoTokenizer.from_pretrained(folder)
    limit = length_limit(options.max_length, words.model_max_length, positions(config))
    tokenizer = TextTokenizer(words, max_length=limit, prompt=options.prompt)
    fixed = config.model_type in FIXED_LENGTH
    at_end = is_decoder(config) or is_text_tower(config)
    plan = Plan(
        modality="text",
        taps={},
        states=tuple(f"hidden_{number}" for number in range(int(config.num_hidden_layers) + 1)),
        identity=identity,
        preprocessing={**tokenizer.to_json(), "padding": "full length" if fixed else "longest"},
        pools=DECODER_POOLS if at_end else TEXT_POOLS,
        inner_pool="eos" if at_end else "mean",
    )
    return HfTextEncoder(spec.text, model, plan, options, tokenizer=tokenizer, fixed_length=fixed)


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
