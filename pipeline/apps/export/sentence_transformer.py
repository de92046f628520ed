"""An export of the text side that sentence-transformers loads by itself: `SentenceTransformer("model")`.

It works where the library has a module for each step: a transformer (cut after the chosen layer, where that is an inner
one), a pooling, the projector's own input normalisation, a linear map, unit length. Everything else is refused with a
sentence. What is written is loaded again and compared with the run's own embeddings before it is handed over.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.apps.dual_encoder import SideEncoder, load_recorded
from pipeline.encoders.base import OUTPUT, Encoder, parse_spec
from pipeline.encoders.hf_family import HfTextEncoder, is_text_tower
from pipeline.encoders.libraries import fetch, import_library
from pipeline.encoders.plain_bert import PlainEncoder
from pipeline.encoders.st_family import SentenceEncoder, library_modules
from pipeline.errors import UserError
from pipeline.projectors.base import AffineProjector, IdentityProjector, LinearProjector, Projector
from pipeline.projectors.run_record import AlignedRun, StoreRecord

TOLERANCE = 1e-5
PROBES = ("a dog", "Two black dogs run over the grass!", "café – naïve 東京", "a red heart " * 60)
POOLING = {"mean": "mean", "cls": "cls", "eos": "lasttoken"}
_REMEDY = "export without --format: that folder takes every run, and its text side is model.encode_text"


def write_sentence_transformer(run: AlignedRun, seed: int, files: Mapping[str, bytes], folder: Path) -> str:
    """Write the text side, encoder included, as a folder of sentence-transformers.

    Raises:
        UserError: The run's text side is none that the library can express: says which part of it.
    """
    layer = _only_layer(run)
    linear = _linear(run.projector("text", seed))
    encoder = SideEncoder(run, "text", "cpu", _in_float32).encoders[0]
    expected = _embed(run, seed, encoder, layer)
    before, options = _body(encoder, layer)
    library = import_library("sentence_transformers")
    whole = library.SentenceTransformer(modules=[*before, *linear, _module("Normalize")()], device="cpu", **options)
    whole.eval().save(str(folder), create_model_card=False)
    _compare(library, folder, expected, run)
    return f"""## Use

The text side alone, with a copy of its encoder inside; pictures need the export without `--format`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{run.root.name}")  # this folder
text = model.encode(["a dog on a beach", "two cats"])  # unit vectors [2, {run.dim}]
```"""


def _only_layer(run: AlignedRun) -> str:
    layers = run.refs("text")
    if len(run.stores["text"]) > 1 or len(layers) > 1:
        what = ", ".join(run.layers["text"])
        raise _refusal("one layer of one text encoder", f"the concatenation of {what}", run)
    return layers[0].name


def _linear(projector: Projector) -> list[nn.Module]:
    """Return the modules that do what the projector does before the unit length.

    Raises:
        UserError: The projector is not linear.
    """
    before = [_module("Normalize")()] if projector.input.mode == "unit" else []
    if isinstance(projector, IdentityProjector) and projector.input.mode != "standardise":
        return before
    if not isinstance(projector, AffineProjector | LinearProjector | IdentityProjector):
        raise UserError(
            expected="a linear projector (linear, affine, identity)",
            found=f"{projector.name}, which no module of sentence-transformers computes",
            where="--format sentence-transformers",
            remedy=_REMEDY,
        )
    weight, bias = _weight_and_bias(projector)
    dense = _module("Dense")(
        projector.d_in, projector.d, activation_function=nn.Identity(), init_weight=weight, init_bias=bias
    )
    return [*before, dense]


@torch.no_grad()
def _weight_and_bias(projector: Projector) -> tuple[Tensor, Tensor]:
    """Return [d, D] and [d] of what follows the unit length, by asking for the images of zero and of the axes.

    A standardising input, (x − mean) · scale, is affine too and is folded in.
    """
    wide = deepcopy(projector).double()
    standardised = wide.input if wide.input.mode == "standardise" else nn.Identity()
    axes = torch.cat([torch.zeros(1, projector.d_in), torch.eye(projector.d_in)]).double()
    images = wide.transform(standardised(axes))
    weight, bias = (images[1:] - images[0]).T.float().contiguous(), images[0].float()
    return weight, bias


def _body(encoder: Encoder, layer: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the modules from tokens to the run's raw feature, and the prompt as options of the whole.

    Raises:
        UserError: The encoder is of a family that sentence-transformers does not load.
    """
    if isinstance(encoder, SentenceEncoder | PlainEncoder):
        modules = library_modules(encoder)
        transformer = modules[0]
    elif isinstance(encoder, HfTextEncoder) and not is_text_tower(encoder.model.config):
        modules = []
        transformer = _module("Transformer")(str(fetch(parse_spec(encoder.spec))))
    else:
        raise UserError(
            expected="a text encoder that sentence-transformers loads (st:, hf:, package:all-minilm-l6-v2)",
            found=encoder.spec,
            where="--format sentence-transformers",
            remedy=_REMEDY,
        )
    transformer.max_seq_length = encoder.info.tokenizer.max_length
    if not (modules and layer == OUTPUT and encoder.options.pool == "auto"):
        rule = encoder.info.inner_pool if encoder.options.pool == "auto" else encoder.options.pool
        modules = [transformer, _module("Pooling")(encoder.width(layer), POOLING[rule])]
        _cut(transformer.auto_model, layer, encoder.spec)
    prompt = encoder.info.tokenizer.prompt
    return modules, {"prompts": {"text": prompt}, "default_prompt_name": "text"} if prompt else {}


def _cut(transformer: Any, layer: str, where: str) -> None:
    """Leave out the blocks after an inner layer, so that the last hidden state is that layer."""
    if layer == OUTPUT:
        return
    depth = int(transformer.config.num_hidden_layers)
    number = layer.removeprefix("hidden_")
    lists = [each for each in transformer.modules() if isinstance(each, nn.ModuleList) and len(each) == depth]
    if not number.isdecimal() or len(lists) != 1 or int(number) > depth:
        raise UserError(
            expected="the encoder's output or one of its hidden states",
            found=f"the layer {layer}",
            where=where,
            remedy=_REMEDY,
        )
    del lists[0][int(number) :]
    transformer.config.num_hidden_layers = int(number)


def _embed(run: AlignedRun, seed: int, encoder: Encoder, layer: str) -> Tensor:
    features = encoder.encode([encoder.prepare(text) for text in PROBES], [layer])[layer]
    return run.encode("text", features, seed)


def _compare(library: Any, folder: Path, expected: Tensor, run: AlignedRun) -> None:
    loaded = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    found = torch.from_numpy(loaded.encode(list(PROBES), show_progress_bar=False))
    gap = float((found - expected).abs().max())
    if not gap <= TOLERANCE:
        raise _refusal(
            f"embeddings within {TOLERANCE:g} of the run's",
            f"a gap of {gap:.1e}: sentence-transformers does not compute this layer",
            run,
        )


def _in_float32(record: StoreRecord, side: str, device: str) -> Encoder:
    return load_recorded(replace(record, key={**record.key, "compute_dtype": "float32"}), side, device)


def _module(name: str) -> Any:
    import_library("sentence_transformers")
    try:
        return getattr(import_module("sentence_transformers.sentence_transformer.modules"), name)
    except ImportError:  # before version 5.5
        return getattr(import_module("sentence_transformers.models"), name)


def _refusal(expected: str, found: str, run: AlignedRun) -> UserError:
    return UserError(expected=expected, found=found, where=f"{run.root.name}, text side", remedy=_REMEDY)
