"""`st:ORG/NAME@REVISION` or `st:/folder`: models of sentence-transformers.

`output` is what `SentenceTransformer.encode` gives: all modules run, a Normalize at the end included. `hidden_0` …
`hidden_L` are the hidden states of the transformer inside, pooled by the mask-weighted mean. The prompt, or else the
model's default one, is put before every text; the maximum length is the model's own. A plain BERT is run without the
library (`plain_bert.py`), to the same bits.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.encoders.base import LoadOptions, Spec
from pipeline.encoders.hf_family import TEXT_POOLS
from pipeline.encoders.libraries import config_digest, fetch, import_library, opening, weight_files, weights_sha256
from pipeline.encoders.plain_bert import Opened, PlainEncoder, open_plain
from pipeline.encoders.taps import Tap
from pipeline.encoders.text_model import TextInfo, TextModel, TextTokenizer, length_limit
from pipeline.encoders.torch_encoder import Batch
from pipeline.errors import UserError
from pipeline.files import spaced_json_digest

VERSION = 1
"""Part of the key: goes up when this module changes what comes out."""

PROBES = ("a dog", "Two Black dogs, running; over the GRASS!", "café – naïve 東京 🐕", "word " * 600)
"""Texts that both ways of tokenizing must agree on."""


class SentenceEncoder(TextModel):
    """A model of sentence-transformers."""

    model: Any

    def __init__(self, spec: str, model: Any, info: TextInfo, options: LoadOptions) -> None:
        self._lock = threading.Lock()
        self._same_tokens = all(
            torch.equal(_theirs(model, text, options.prompt), info.tokenizer(text)) for text in PROBES
        )
        probe = model.preprocess(["a"], prompt=options.prompt) if options.prompt else {}
        self._prompt_length = probe.get("prompt_length")  # in tokens, of models whose pooling leaves the prompt out
        super().__init__(spec, model, info, options)

    def prepare(self, sample: Image.Image | str) -> Tensor:
        """Turn a text into T token ids, by the library's own code where it does more than tokenize.

        Raises:
            UserError: The sample is an image, or the text has no token.
        """
        if self._same_tokens or not isinstance(sample, str):
            return super().prepare(sample)
        with self._lock:
            ids = _theirs(self.model, sample, self.options.prompt)
        if not len(ids):
            raise UserError(expected="a text with at least one token", found=repr(sample), where=self.spec)
        return ids

    def _output(self, batch: Batch, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        features: dict[str, Any] = dict(batch.inputs)
        if self._prompt_length is not None:
            features["prompt_length"] = self._prompt_length
        config = self.model[0].auto_model.config
        before, config.output_hidden_states = config.output_hidden_states, bool(states)
        try:
            out = self.model(features)
        finally:
            config.output_hidden_states = before
        found = dict(zip(self.info.states, out["all_layer_embeddings"], strict=True)) if states else {}
        if self.options.pool == "auto":
            return out["sentence_embedding"], found
        return self._reduce(out["token_embeddings"], batch.tokens), found


def library_modules(encoder: SentenceEncoder | PlainEncoder) -> list[Any]:
    """Return the library's own modules of an encoder, in order."""
    return list(encoder.model if isinstance(encoder, SentenceEncoder) else _library_model(encoder.folder, "cpu"))


def load(spec: Spec, options: LoadOptions) -> SentenceEncoder | PlainEncoder:
    """Load a model of sentence-transformers.

    Raises:
        UserError: The weights cannot be had or the folder is none of this library.
    """
    with opening(spec, "st:/folder with modules.json"):
        return from_folder(spec, options, fetch(spec, "modules.json"), family="st", name=spec.key_name)


def from_folder(
    spec: Spec, options: LoadOptions, folder: Path, *, family: str, name: str
) -> SentenceEncoder | PlainEncoder:
    """Load a folder of sentence-transformers (also used for weights from packages)."""
    opened = plain = open_plain(folder)
    if opened is None:
        opened = _open_with_library(spec, options, folder)
    if not options.prompt and opened.prompt:
        options = replace(options, prompt=opened.prompt)
    limit = length_limit(options.max_length, opened.limit)
    tokenizer = TextTokenizer(opened.tokenizer, max_length=limit, prompt=options.prompt, lower=opened.lower)
    config, bert = opened.config, plain.model[0].model if plain else None
    inner = folder / "0_Transformer" if (folder / "0_Transformer").is_dir() else folder
    weights = [*weight_files(inner), *folder.glob("[1-9]*_*/*.safetensors"), *folder.glob("[1-9]*_*/pytorch_model.bin")]
    states = tuple(f"hidden_{number}" for number in range(config.num_hidden_layers + 1))
    places = [Tap(module=module) for module in (bert.embeddings, *bert.encoder.layer)] if bert else []
    info = TextInfo(
        taps=dict(zip(states, places, strict=True)) if plain else {},
        states=() if plain else states,
        identity={
            "family": family,
            "name": name,
            "weights": weights_sha256(weights),
            "config": spaced_json_digest([config_digest(config), opened.later]),
            "architecture": opened.architecture,
            "version": VERSION,
        },
        preprocessing=tokenizer.to_json(),
        tokenizer=tokenizer,
        pools=TEXT_POOLS,
        inner_pool="mean",
    )
    if plain:
        return PlainEncoder(spec.text, opened.model, info, options, folder)
    opened.model.max_seq_length = limit
    return SentenceEncoder(spec.text, opened.model, info, options)


def _open_with_library(spec: Spec, options: LoadOptions, folder: Path) -> Opened:
    model = _library_model(folder, options.device)
    transformer = model[0]
    if not hasattr(transformer, "auto_model"):
        raise UserError(expected="a transformer as first module", found=type(transformer).__name__, where=spec.text)
    return Opened(
        model=model,
        architecture=type(transformer.auto_model).__name__,
        tokenizer=model.tokenizer,
        config=transformer.auto_model.config,
        later=[[type(module).__name__, getattr(module, "get_config_dict", dict)()] for module in list(model)[1:]],
        limit=model.max_seq_length,
        lower=bool(getattr(transformer, "do_lower_case", False)),
        prompt=model.prompts[model.default_prompt_name] if model.default_prompt_name else "",
    )


def _library_model(folder: Path, device: str) -> Any:
    library = import_library("sentence_transformers")
    return library.SentenceTransformer(str(folder), device=device, local_files_only=True).float()


def _theirs(model: Any, text: str, prompt: str) -> Tensor:
    ids: Tensor = model.preprocess([text], prompt=prompt or None)["input_ids"][0]
    return ids.cpu().long()
