"""The text side for sentence-transformers: loaded by the library alone, it gives the run's own embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.apps.dual_encoder import DualEncoder, load_model
from pipeline.apps.export.run import export
from pipeline.encoders.libraries import import_library
from pipeline.errors import UserError
from tests.apps.export.building import WORDS, make_run, store_record
from tests.encoders.conftest import TEXTS, save_tokenizer

BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}
MODULE = "0.model.encoder.layer.1.intermediate"
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random BERT."""
    transformers = import_library("transformers")
    folder: Path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(5)
    config = transformers.BertConfig(max_position_embeddings=20, **BERT)
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sentence-transformers around that BERT."""
    modules = import_library("sentence_transformers.sentence_transformer.modules")
    parts = [modules.Transformer(str(bert)), modules.Pooling(32), modules.Normalize()]
    folder: Path = tmp_path_factory.mktemp("sentences")
    import_library("sentence_transformers").SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def make(spec: str, layer: str = "output", kind: str = "affine", dim: int = 7, **settings: Any) -> Path:
        options = settings.pop("options", {})
        text = {"d_in": 32, **settings}
        return make_run(
            tmp_path / "run",
            specs={"text": [spec]},
            layers={"text": [layer]},
            projectors={"text": kind},
            settings={"text": text},
            records={"text": [store_record("text", spec, **options)]},
            dim=dim,
        )

    return make


def check(run: Path, to: Path) -> None:
    export(run, to, form="sentence-transformers")
    model = import_library("sentence_transformers").SentenceTransformer(str(to), device="cpu", local_files_only=True)
    found = torch.from_numpy(model.encode(TEXTS))
    expected = DualEncoder.open(run).encode_text(TEXTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert model.get_embedding_dimension() == expected.shape[1]


@pytest.mark.parametrize("mode", ["none", "unit", "standardise"])
@pytest.mark.parametrize("kind", ["affine", "linear"])
def test_linear_maps(run: Run, sentences: Path, tmp_path: Path, kind: str, mode: str) -> None:
    check(run(f"st:{sentences}", kind=kind, normalise_input=mode), tmp_path / "model")


@pytest.mark.parametrize("mode", ["unit", "standardise"])
def test_identity(run: Run, sentences: Path, tmp_path: Path, mode: str) -> None:
    check(run(f"st:{sentences}", kind="identity", dim=32, normalise_input=mode), tmp_path / "model")


@pytest.mark.parametrize("layer", ["hidden_0", "hidden_1", "hidden_3"])
def test_inner_layers_by_leaving_out_what_follows(run: Run, sentences: Path, tmp_path: Path, layer: str) -> None:
    check(run(f"st:{sentences}", layer), tmp_path / "model")
    model = import_library("transformers").AutoModel.from_pretrained(tmp_path / "model")
    assert len(model.encoder.layer) == int(layer[-1])


@pytest.mark.parametrize(("layer", "pool"), [("output", "auto"), ("hidden_2", "auto"), ("output", "cls")])
def test_plain_transformers(run: Run, bert: Path, tmp_path: Path, layer: str, pool: str) -> None:
    check(run(f"hf:{bert}", layer, options={"pool": pool}), tmp_path / "model")


def test_prompt_and_length_go_along(run: Run, sentences: Path, tmp_path: Path) -> None:
    check(run(f"st:{sentences}", options={"prompt": "a photo of ", "max_length": 6}), tmp_path / "model")


def test_such_a_folder_is_an_encoder_too(run: Run, sentences: Path, tmp_path: Path) -> None:
    check(run(f"st:{sentences}"), tmp_path / "model")
    again = run(f"st:{tmp_path / 'model'}", kind="identity", d_in=7)
    expected = import_library("sentence_transformers").SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = DualEncoder.open(again).encode_text(TEXTS)
    torch.testing.assert_close(found, torch.from_numpy(expected.encode(TEXTS)), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="load it with SentenceTransformer"):
        load_model(tmp_path / "model")


def test_what_does_not_go_is_one_sentence(run: Run, sentences: Path, tmp_path: Path) -> None:
    spec = f"st:{sentences}"
    stacked = make_run(
        tmp_path / "stacked",
        specs={"text": [spec]},
        layers={"text": ["hidden_1", "output"]},
        settings={"text": {"d_in": 64}},
    )
    cases: list[tuple[Callable[[], Path], str]] = [
        (lambda: stacked, "one layer of one text encoder, found the concatenation of hidden_1, output; export without"),
        (lambda: run(spec, kind="residual_mlp"), "found residual_mlp, which no module of sentence-transformers"),
        (lambda: run(WORDS, d_in=3), "a text encoder that sentence-transformers loads.*found tests.apps.tiny"),
        (lambda: run(spec, MODULE, d_in=64), "or one of its hidden states, found the layer 0"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            export(make(), tmp_path / "model", form="sentence-transformers")
    assert not (tmp_path / "model").exists()
