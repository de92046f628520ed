"""An export of the text side that sentence-transformers loads by itself: `SentenceTransformer("model")`.

Where the library has a module for each step (a transformer, cut after the chosen layer where that is an inner one, a
pooling, the projector's own input normalisation, a linear map, unit length) the export is made of these. Stacked layers
and the correction of hubs need one of ours, `fewpairs_head.py`: a copy goes along, and the library wants
`trust_remote_code=True` to load it. Everything else is refused with a sentence. What is written is loaded again and
compared with the run's own embeddings before it is handed over.
"""

import shutil
from collections.abc import Mapping, Sequence
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
from pipeline.projectors.csls import CslsProjector
from pipeline.projectors.run_record import AlignedRun, StoreRecord

HEAD = "fewpairs_head.py"
TOLERANCE = 1e-5
PROBES = ("a dog", "Two black dogs run over the grass!", "café – naïve 東京", "a red heart " * 60)
POOLING = {"mean": "mean", "cls": "cls", "eos": "lasttoken"}
_REMEDY = "export without --format: that folder takes every run, and its text side is model.encode_text"


def write_sentence_transformer(run: AlignedRun, seed: int, files: Mapping[str, bytes], folder: Path) -> str:
    """Write the text side, encoder included, as a folder of sentence-transformers.

    Raises:
        UserError: The run's text side is none that the library can express: says which part of it.
    """
    layers = _layers(run)
    projector = run.projector("text", seed)
    encoder = SideEncoder(run, "text", "cpu", _in_float32).encoders[0]
    expected = _embed(run, seed, encoder, layers)
    own = len(layers) > 1 or isinstance(projector, CslsProjector)
    if own:
        before, options = _whole(encoder, layers)
        after = [_head(projector, layers, encoder)]
    else:
        linear = _linear(projector)
        before, options = _body(encoder, layers[0])
        after = [*linear, _module("Normalize")()]
    library = import_library("sentence_transformers")
    model = library.SentenceTransformer(modules=[*before, *after], device="cpu", **options)
    model.eval().save(str(folder), create_model_card=False)
    if own:
        _bring_head(folder)
    _compare(library, folder, expected, run, own=own)
    trust = ", trust_remote_code=True" if own else ""
    why = f" `{HEAD}` here is the module of it that the library does not have; read it before you trust it." * own
    return f"""## Use

The text side alone, with a copy of its encoder inside; pictures need the export without `--format`.{why}

```sh
pip install sentence-transformers
```

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{run.root.name}"{trust})  # this folder
text = model.encode(["a dog on a beach", "two cats"])  # unit vectors [2, {run.dim}]
```"""


def _layers(run: AlignedRun) -> list[str]:
    layers = run.refs("text")
    if len(run.stores["text"]) > 1:
        raise _refusal("layers of one text encoder", f"the concatenation of {', '.join(run.layers['text'])}", run)
    return [layer.name for layer in layers]


def _whole(encoder: Encoder, layers: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the modules from tokens to all hidden states and the encoder's output, uncut."""
    for name in layers:
        if name != OUTPUT and not name.removeprefix("hidden_").isdecimal():
            raise _no_layer(name, encoder.spec)
    modules, options = _body(encoder, OUTPUT)
    modules[0].auto_model.config.output_hidden_states = True
    return modules, options


def _head(projector: Projector, layers: Sequence[str], encoder: Any) -> nn.Module:
    """Return our module of the projector."""
    csls = projector if isinstance(projector, CslsProjector) else None
    inner = csls.base if csls is not None else projector
    _require_linear(inner)
    weight, bias = _weight_and_bias(inner)
    pool = encoder.info.inner_pool if encoder.options.pool == "auto" else encoder.options.pool
    head: nn.Module = import_module("pipeline.apps.export.fewpairs_head").FewpairsHead(
        layers=list(layers),
        pool=pool,
        blocks=list(inner.input.blocks) if inner.input.mode == "unit" else [],
        shape=list(weight.shape),
        bank=0 if csls is None else len(csls.bank),
        neighbours=0 if csls is None else csls.neighbours,
        weight=0.0 if csls is None else csls.weight,
    )
    state = {"linear.weight": weight, "linear.bias": bias}
    head.load_state_dict(state | {"known": head.known if csls is None else csls.bank})
    return head


def _bring_head(folder: Path) -> None:
    """Put our module's file beside modules.json, which then names it as a part of the folder."""
    source = import_module("pipeline.apps.export.fewpairs_head").__file__
    shutil.copy(str(source), folder / HEAD)
    path = folder / "modules.json"
    text = path.read_text(encoding="utf-8").replace("pipeline.apps.export.fewpairs_head.", f"{Path(HEAD).stem}.")
    path.write_text(text, encoding="utf-8")


def _linear(projector: Projector) -> list[nn.Module]:
    """Return the modules that do what the projector does before the unit length.

    Raises:
        UserError: The projector is not linear.
    """
    before = [_module("Normalize")()] if projector.input.mode == "unit" else []
    if isinstance(projector, IdentityProjector) and projector.input.mode != "standardise":
        return before
    _require_linear(projector)
    weight, bias = _weight_and_bias(projector)
    dense = _module("Dense")(
        projector.d_in, projector.d, activation_function=nn.Identity(), init_weight=weight, init_bias=bias
    )
    return [*before, dense]


def _require_linear(projector: Projector) -> None:
    if not isinstance(projector, AffineProjector | LinearProjector | IdentityProjector):
        raise UserError(
            expected="a linear projector (linear, affine, identity)",
            found=f"{projector.name}, which no module of sentence-transformers computes",
            where="--format sentence-transformers",
            remedy=_REMEDY,
        )


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
        raise _no_layer(layer, where)
    del lists[0][int(number) :]
    transformer.config.num_hidden_layers = int(number)


def _no_layer(layer: str, where: str) -> UserError:
    expected = "the encoder's output or one of its hidden states"
    return UserError(expected=expected, found=f"the layer {layer}", where=where, remedy=_REMEDY)


def _embed(run: AlignedRun, seed: int, encoder: Encoder, layers: Sequence[str]) -> Tensor:
    found = encoder.encode([encoder.prepare(text) for text in PROBES], list(layers))
    return run.encode("text", torch.cat([found[layer] for layer in layers], dim=1), seed)


def _compare(library: Any, folder: Path, expected: Tensor, run: AlignedRun, *, own: bool) -> None:
    loaded = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=own)
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
