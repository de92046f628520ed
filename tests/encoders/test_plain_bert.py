"""BERT without sentence-transformers: the library's bits, its key, its names of modules; and what is left to it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders import st_family
from pipeline.encoders.libraries import import_library
from pipeline.encoders.load import load_encoder
from pipeline.encoders.plain_bert import PlainEncoder, open_plain
from pipeline.encoders.st_family import SentenceEncoder, library_modules

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96, "vocab_size": 40}
HEAVY = (
    "sklearn",
    "scipy",
    "timm",
    "sentence_transformers",
    "torch._dynamo",
    "torchvision",
    "transformers.modeling_utils",
)
LEGACY = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
Make = Callable[..., Path]


@pytest.fixture
def make(hf_folder: Callable[..., Path]) -> Make:
    """Return a function that writes a folder as those on the hub are, with changes to its files."""

    def write(pooling: dict[str, Any] | None = None, *, unit: bool = True, **changes: dict[str, Any]) -> Path:
        folder = hf_folder("BertConfig", "BertModel", max_position_embeddings=20, **SIZES)
        names = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")][: 3 if unit else 2]
        kinds = enumerate((f"sentence_transformers.models.{kind}", path) for kind, path in names)
        steps = [{"idx": number, "name": str(number), "path": path, "type": kind} for number, (kind, path) in kinds]
        files = {"sentence_bert_config": {"max_seq_length": 12, "do_lower_case": False}, **changes}
        for name, values in files.items():
            path = folder / f"{name}.json"
            before = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps({**before, **values}))
        (folder / "modules.json").write_text(json.dumps(steps))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(LEGACY if pooling is None else pooling))
        return folder

    return write


def by_library(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> SentenceEncoder:
    with monkeypatch.context() as patch:
        patch.setattr(st_family, "open_plain", lambda folder: None)
        encoder = load_encoder(f"st:{folder}", **options)
    assert isinstance(encoder, SentenceEncoder)
    return encoder


@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        (LEGACY, {}),
        (LEGACY, {"dtype": "bf16"}),
        (LEGACY, {"pool": "eos", "max_length": 4, "prompt": "a photo of "}),
        ({"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True}, {}),
    ],
)
@pytest.mark.parametrize("unit", [True, False])
def test_bits_and_key_are_the_librarys(
    make: Make, monkeypatch: pytest.MonkeyPatch, texts: list[str], pooling: Any, options: Any, unit: bool
) -> None:
    folder = make(pooling, unit=unit)
    plain, theirs = load_encoder(f"st:{folder}", **options), by_library(monkeypatch, folder, **options)
    assert isinstance(plain, PlainEncoder)
    assert plain.key() == theirs.key()
    layers = (*theirs.resolve_layers("all"), "0.model.encoder.layer.1.intermediate", "0.model.pooler")
    for batch in (texts, texts[:1], [texts[0]] * 3):
        found, expected = (each.encode([each.prepare(text) for text in batch], layers) for each in (plain, theirs))
        assert all(torch.equal(found[name], expected[name]) for name in layers)


def test_modules_have_the_librarys_names(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    plain = load_encoder(f"st:{folder}")
    assert isinstance(plain, PlainEncoder)
    named = {name for name, _ in by_library(monkeypatch, folder).model.named_modules()}
    assert {name for name, _ in plain.model.named_modules()} == {
        name for name in named if "dropout" not in name
    }  # which does nothing here
    assert [type(module).__name__ for module in library_modules(plain)] == ["Transformer", "Pooling", "Normalize"]


@pytest.mark.parametrize(
    ("pooling", "changes"),
    [
        ({**LEGACY, "pooling_mode_max_tokens": True}, {}),
        ({**LEGACY, "include_prompt": False}, {}),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, {}),
        ({"embedding_dimension": 64, "pooling_mode": ["mean", "cls"]}, {}),
        (None, {"config": {"hidden_act": "relu"}}),
        (None, {"config": {"is_decoder": True}}),
        (None, {"config": {"position_embedding_type": "relative_key"}}),
        (None, {"config": {"num_hidden_layers": 2}}),
        (None, {"sentence_bert_config": {"max_seq_length": 12, "query_length": 8}}),
        (None, {"sentence_bert_config": {"max_seq_length": 12, "do_lower_case": True}}),
        (None, {"config_sentence_transformers": {"prompts": {"q": "query: "}, "default_prompt_name": "q"}}),
    ],
)
def test_what_asks_for_more_is_left_to_the_library(make: Make, pooling: Any, changes: dict[str, Any]) -> None:
    assert open_plain(make()) is not None
    assert open_plain(make(pooling, **changes)) is None


def test_a_module_of_ones_own_is_left_to_the_library(make: Make) -> None:
    folder = make()
    steps = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(steps.replace("sentence_transformers.models.Pooling", "mine.Pooling"))
    assert open_plain(folder) is None


def test_a_text_query_loads_nothing_heavy(make: Make, tmp_path: Path) -> None:
    """The encoder of a plain BERT and a saved projector, as `pipeline search` opens them."""
    from pipeline.projectors.base import AffineProjector
    from pipeline.projectors.run_record import save_projector

    save_projector(tmp_path, "text", AffineProjector(64, 8))
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import pipeline.apps.search\n"
        "from pipeline.encoders.load import load_encoder\n"
        "from pipeline.projectors.run_record import load_projector\n"
        f"encoder = load_encoder('st:{make()}')\n"
        f"projector = load_projector(Path({str(tmp_path)!r}), 'text')\n"
        "projector(encoder.encode([encoder.prepare('a dog')], ['output'])['output'])\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_weights_of_a_whole_model_are_left_to_the_library(make: Make) -> None:
    folder = make()
    safetensors = import_library("safetensors.torch")
    state = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file({f"bert.{name}": value for name, value in state.items()}, folder / "model.safetensors")
    assert open_plain(folder) is None
