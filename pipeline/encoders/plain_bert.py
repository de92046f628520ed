"""BERT with mean or first-token pooling, on torch alone: what the usual small sentence encoders are.

sentence-transformers loads scikit-learn, SciPy and torch's compiler before it has read a weight. Here are the same
operations in the same order, under the same names of modules, so that features and keys stay what they were (tests
compare bits). What a folder asks for beyond that is left to the library.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.libraries import import_library
from pipeline.encoders.text_model import TextInfo, TextModel
from pipeline.encoders.torch_encoder import Batch

_STEPS = ("Transformer", "Pooling", "Normalize")
_SETTINGS = {"max_seq_length", "do_lower_case"}
_POOLING = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
_POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_BEYOND = (
    *("is_decoder", "add_cross_attention", "is_encoder_decoder", "chunk_size_feed_forward"),
    *("auto_map", "quantization_config", "attn_implementation", "_attn_implementation"),
)
"""Fields of a config that, where set, ask for more than is here."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A folder of sentence-transformers."""

    model: Any
    """Its modules, in order."""
    architecture: str
    """The class of the transformer, as transformers calls it."""
    tokenizer: Any
    """Its tokenizer, of transformers."""
    config: Any
    """The transformer's config, of transformers."""
    later: list[Any]
    """[type, settings] of each module after the transformer, in the words of sentence-transformers 6."""
    limit: int
    """Longest text in tokens."""
    lower: bool = False
    """Whether the case is lowered first."""
    prompt: str = ""
    """What it puts before a text where nothing is asked for."""


def open_plain(folder: Path) -> Opened | None:
    """Open a folder without the library; None where it holds more than is here."""
    weights, steps, settings = folder / "model.safetensors", _steps(folder), _read(folder / "sentence_bert_config.json")
    about, limit = _read(folder / "config.json"), settings.get("max_seq_length")
    if _read(folder / "config_sentence_transformers.json").get("default_prompt_name") or not weights.is_file():
        return None
    if not steps or not set(settings) <= _SETTINGS or not isinstance(limit, int) or settings.get("do_lower_case"):
        return None
    if not _is_plain(about):
        return None
    pool = _pool(_read(folder / steps[1][1] / "config.json"))
    transformers = import_library("transformers")
    config, tokenizer = (each.from_pretrained(folder) for each in (transformers.AutoConfig, transformers.AutoTokenizer))
    bert = _bert(config, import_library("safetensors.torch").load_file(weights))
    if not pool or bert is None or not tokenizer.is_fast:
        return None
    later: list[Any] = [
        ["Pooling", {"embedding_dimension": config.hidden_size, "pooling_mode": pool, "include_prompt": True}],
        ["Normalize", {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}],
    ]
    return Opened(
        model=Sentences([Transformer(bert), Pooling(pool), *([Normalize()] if len(steps) > 2 else [])]),
        architecture="BertModel",
        tokenizer=tokenizer,
        config=config,
        later=later[: len(steps) - 1],
        limit=limit,
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _steps(folder: Path) -> list[tuple[str, str]]:
    """Return (kind, folder) of each module; none where one is of a kind that is not here."""
    steps = [(str(step.get("type")), str(step.get("path"))) for step in _read(folder / "modules.json") or []]
    found = [(kind.rpartition(".")[2], path) for kind, path in steps if kind.startswith("sentence_transformers.")]
    names = tuple(name for name, _ in found)
    known = len(found) == len(steps) and names in (_STEPS, _STEPS[:2]) and found[0][1] == ""
    return found if known and all(Path(path).name == path for _, path in found) else []


def _pool(settings: dict[str, Any]) -> str:
    """Return mean or cls; nothing where it is another one, several, or more is asked for."""
    flags = {name for name, value in settings.items() if name.startswith("pooling_mode_") and value}
    others = {name for name in settings if not name.startswith("pooling_mode_")} - _POOLING
    if others or not settings.get("include_prompt", True):
        return ""
    named = settings.get("pooling_mode", _POOLS.get(flags.pop(), "") if len(flags) == 1 else "")
    return named if named in ("mean", "cls") else ""


def _is_plain(about: dict[str, Any]) -> bool:
    usual = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    said = {name: about.get(name, value) for name, value in usual.items()} | {"model_type": about.get("model_type")}
    return said == usual and not any(about.get(name) for name in _BEYOND)


def _bert(config: Any, state: dict[str, Tensor]) -> "Bert | None":
    """Return the model with these weights; None where they are not exactly its own."""
    state = {name: value.float() for name, value in state.items() if not name.endswith("position_ids")}
    with torch.device("meta"):  # no memory and no random numbers are spent on weights that are replaced
        bert = Bert(config, pooler="pooler.dense.weight" in state)
    wanted, given = ({name: value.shape for name, value in each.items()} for each in (bert.state_dict(), state))
    if wanted != given:
        return None
    bert.load_state_dict(state, assign=True)
    return bert


class PlainEncoder(TextModel):
    """A plain BERT out of a folder of sentence-transformers, run without the library.

    Args:
        spec: See `TorchEncoder`, as for `model`, `info` and `options`.
        folder: Where it lies.
    """

    def __init__(self, spec: str, model: Any, info: TextInfo, options: LoadOptions, folder: Path) -> None:
        self.folder = folder
        super().__init__(spec, model, info, options)

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        embedding, tokens = self.model(**batch.inputs)
        return embedding if self.options.pool == "auto" else self._reduce(tokens, batch.tokens), {}


class Sentences(nn.ModuleList):
    """Transformer, pooling and, where there is one, unit length."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding [N, D] and the tokens [N, T, D] that it is pooled from."""
        transformer, pooling, *rest = self
        tokens = transformer(input_ids, attention_mask)
        embedding = pooling(tokens, attention_mask)
        for module in rest:
            embedding = module(embedding)
        return embedding, tokens


class Transformer(nn.Module):
    """Holds the model under the name that the library has for it."""

    def __init__(self, model: "Bert") -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden state [N, T, D]."""
        return cast(Tensor, self.model(input_ids, attention_mask))


class Pooling(nn.Module):
    """The first token, or the mean over real tokens, summed in float32 as the library sums it."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [N, D]."""
        if self.pool == "cls":
            return tokens[:, 0].clone()
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        total = (tokens * mask).sum(dim=1, dtype=torch.float32)
        return (total / mask.sum(dim=1, dtype=torch.float32).clamp(min=1e-9)).to(tokens.dtype)


class Normalize(nn.Module):
    """Unit length."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Return [N, D]."""
        return functional.normalize(embedding, p=2, dim=-1)


class Bert(nn.Module):
    """BERT (arXiv 1810.04805) for one text a row: no second segment, no dropout."""

    def __init__(self, config: Any, *, pooler: bool) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.pooler = _Pooler(config.hidden_size) if pooler else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden state [N, T, D]."""
        count, length = input_ids.shape
        real = attention_mask.bool()
        mask = None if real.all() else real[:, None, None, :].expand(count, 1, length, length)
        hidden: Tensor = self.encoder(self.embeddings(input_ids), mask)
        if self.pooler is not None:
            self.pooler(hidden)  # somebody may tap it
        return hidden


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = _table(config.vocab_size, width)
        self.position_embeddings = _table(config.max_position_embeddings, width)
        self.token_type_embeddings = _table(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        words = self.word_embeddings(input_ids) + self.token_type_embeddings(torch.zeros_like(input_ids))
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return cast(Tensor, self.LayerNorm(words + self.position_embeddings(places)))


def _table(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))  # drawing at random loads torch's compiler


class _Encoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, mask)
        return hidden


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention = _Attention(width, config.num_attention_heads, eps)
        self.intermediate = _Intermediate(width, inner)
        self.output = _AddAndNorm(inner, width, eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention(hidden, mask)
        return cast(Tensor, self.output(self.intermediate(attended), attended))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self = _SelfAttention(width, heads)
        self.output = _AddAndNorm(width, width, eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return cast(Tensor, self.output(self.self(hidden, mask), hidden))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        shape = (*hidden.shape[:2], self.heads, -1)
        query, key, value = (each(hidden).view(shape).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, scale=query.shape[-1] ** -0.5)
        return mixed.transpose(1, 2).reshape(hidden.shape)


class _AddAndNorm(nn.Module):
    def __init__(self, inner: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        return cast(Tensor, self.LayerNorm(self.dense(inner) + residual))


class _Intermediate(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.intermediate_act_fn(self.dense(hidden)))


class _Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.activation = nn.Tanh()

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.dense(hidden[:, 0])))
