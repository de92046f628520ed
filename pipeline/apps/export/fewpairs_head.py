"""The end of a run's text side as a module of sentence-transformers: stacked layers, projector, correction of hubs.

An export holds a copy of this file beside its `modules.json`; it needs torch and sentence-transformers, and nothing of
fewpairs. The modules before it give the hidden states and the encoder's own output.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

try:
    from sentence_transformers.base.modules import Module
except ImportError:  # before version 5.5
    from sentence_transformers.models import Module


class FewpairsHead(Module):  # type: ignore[misc]  # no types there
    """Features of a text to its unit vector [N, d].

    Args:
        layers: `output`, or `hidden_K`; their features are concatenated in this order.
        pool: How the tokens of a hidden state become one vector: mean, cls or eos.
        blocks: Widths of the parts that get unit length one by one; empty where they get none.
        shape: [d, D] of the linear map.
        bank: B training pictures of the correction of hubs; 0 where there is none.
        neighbours: K of the bank that a text's mean similarity is taken over.
        weight: w of the correction.
    """

    config_keys = ["layers", "pool", "blocks", "shape", "bank", "neighbours", "weight"]  # noqa: RUF012  # the library's

    def __init__(
        self,
        layers: list[str],
        pool: str,
        blocks: list[int],
        shape: list[int],
        bank: int = 0,
        neighbours: int = 0,
        weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.pool, self.blocks, self.shape = layers, pool, blocks, shape
        self.bank, self.neighbours, self.weight = bank, neighbours, weight
        self.linear = torch.nn.Linear(shape[1], shape[0])
        self.register_buffer("known", torch.zeros(bank, shape[0]))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Put the vectors in place of `sentence_embedding`."""
        parts = [self._layer(name, features) for name in self.layers]
        x = torch.cat(parts, dim=1)
        if self.blocks:
            units = [functional.normalize(part, dim=1) for part in torch.split(x, self.blocks, dim=1)]
            x = torch.cat(units, dim=1) / len(units) ** 0.5
        x = functional.normalize(self.linear(x), dim=1)
        if self.bank:
            near = (x @ self.known.T).topk(min(self.neighbours, self.bank), dim=1).values.mean(1, keepdim=True)
            near, root = near.clamp(-1, 1), self.weight**0.5
            fill = root * (1 - near**2).clamp_min(1e-12).sqrt()
            x = torch.cat([x, torch.full_like(near, root), -root * near, torch.zeros_like(near), fill], dim=1)
        return {**features, "sentence_embedding": functional.normalize(x, dim=1)}

    def _layer(self, name: str, features: dict[str, Any]) -> Tensor:
        if name == "output":
            return features["sentence_embedding"]  # type: ignore[no-any-return]
        tokens = features["all_layer_embeddings"][int(name.removeprefix("hidden_"))]
        mask = features["attention_mask"]
        if self.pool == "cls":
            return tokens[:, 0]  # type: ignore[no-any-return]
        if self.pool == "eos":
            return tokens[torch.arange(len(tokens)), mask.sum(1) - 1]  # type: ignore[no-any-return]
        shares = mask[:, :, None].to(tokens.dtype)
        return (tokens * shares).sum(1) / shares.sum(1)  # type: ignore[no-any-return]

    def get_sentence_embedding_dimension(self) -> int:
        """Return d."""
        return self.shape[0] + 4 * bool(self.bank)

    get_embedding_dimension = get_sentence_embedding_dimension

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        """Write settings and weights into a folder."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> "FewpairsHead":
        """Read what `save` wrote."""
        kept = ("token", "cache_folder", "revision", "local_files_only")
        stated = {name: options[name] for name in kept if name in options}
        made = cls(**cls.load_config(model_name_or_path, subfolder=subfolder, **stated))
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=made, **stated)  # type: ignore[no-any-return]
