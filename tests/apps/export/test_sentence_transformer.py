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


def stacked(place: Path, specs: list[str], layers: list[str], kind: str = "affine", **settings: Any) -> Path:
    text = settings if kind == "csls" else {"d_in": 64, **settings}
    names, dim = {"text": specs}, 11 if kind == "csls" else 7
    return make_run(
        place / "stacked",
        specs=names,
        layers={"text": layers},
        projectors={"text": kind},
        settings={"text": text},
        dim=dim,
    )


def check(run: Path, to: Path, *, own: bool = False) -> None:
    export(run, to, form="sentence-transformers")
    library = import_library("sentence_transformers")
    if own:
        with pytest.raises(ValueError, match="trust_remote_code"):
            library.SentenceTransformer(str(to), device="cpu", local_files_only=True)
    assert ("trust_remote_code=True" in (to / "README.md").read_text()) == own
    model = library.SentenceTransformer(str(to), device="cpu", local_files_only=True, trust_remote_code=own)
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


@pytest.mark.parametrize("settings", [{}, {"normalise_input": "unit", "blocks": [32, 32]}, {"normalise_input": "none"}])
def test_stacked_layers(sentences: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = stacked(tmp_path, [f"st:{sentences}"], ["hidden_1", "output"], **settings)
    check(run, tmp_path / "model", own=True)


def test_stacked_layers_of_a_plain_transformer_with_hubs_corrected(bert: Path, tmp_path: Path) -> None:
    """The default's form: a linear map of several layers, behind it the correction by the nearest training pictures."""
    base = {"projector": "affine", "settings": {"d_in": 64, "d": 7, "normalise_input": "unit", "blocks": [32, 32]}}
    hubs = {"base": base, "bank": 20, "side": "text", "neighbours": 5, "weight": 0.5}
    run = stacked(tmp_path, [f"hf:{bert}"], ["hidden_0", "hidden_3"], kind="csls", **hubs)
    check(run, tmp_path / "model", own=True)


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
    cases: list[tuple[Callable[[], Path], str]] = [
        (
            lambda: stacked(tmp_path, [spec, spec], ["0/output", "1/output"]),
            "layers of one text encoder, found the con",
        ),
        (
            lambda: stacked(tmp_path, [spec], ["output", MODULE], d_in=96),
            "or one of its hidden states, found the layer",
        ),
        (lambda: stacked(tmp_path, [spec], ["hidden_1", "output"], kind="residual_mlp"), "found residual_mlp, which"),
        (lambda: run(spec, kind="residual_mlp"), "found residual_mlp, which no module of sentence-transformers"),
        (lambda: run(WORDS, d_in=3), "a text encoder that sentence-transformers loads.*found tests.apps.tiny"),
        (lambda: run(spec, MODULE, d_in=64), "or one of its hidden states, found the layer 0"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            export(make(), tmp_path / "model", form="sentence-transformers")
    assert not (tmp_path / "model").exists()
