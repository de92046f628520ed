"""sentence-transformers: output is exactly what `encode` gives, hidden states are the transformer's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.encoders.libraries import import_library
from pipeline.encoders.load import load_encoder
from pipeline.encoders.st_family import SentenceEncoder
from pipeline.errors import UserError

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def save(hf_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Save:
    def make(*, dense: bool = False, lower: bool = False, **pooling: Any) -> Path:
        library = import_library("sentence_transformers")
        modules = import_library("sentence_transformers.sentence_transformer.modules")
        inner = hf_folder("BertConfig", "BertModel", max_position_embeddings=20, **BERT)
        transformer = modules.Transformer(str(inner), do_lower_case=lower)
        parts = [transformer, modules.Pooling(32, **pooling)]
        torch.manual_seed(4)
        parts += [modules.Dense(32, 24)] if dense else []
        folder: Path = tmp_path_factory.mktemp("sentences")
        library.SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu").save(str(folder))
        return folder

    return make


def load(folder: Path, **options: Any) -> SentenceEncoder:
    encoder = load_encoder(f"st:{folder}", **options)
    assert isinstance(encoder, SentenceEncoder)
    return encoder


def encode(encoder: SentenceEncoder, texts: list[str]) -> dict[str, torch.Tensor]:
    return encoder.encode([encoder.prepare(text) for text in texts], encoder.resolve_layers("all"))


@pytest.mark.parametrize("prompt", ["", "a photo of "])
@pytest.mark.parametrize("dense", [False, True])
def test_output_is_encode(save: Save, texts: list[str], prompt: str, dense: bool) -> None:
    folder = save(dense=dense)
    features = encode(load(folder, prompt=prompt), texts)
    model = import_library("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    expected = torch.from_numpy(model.encode(texts, prompt=prompt or None))
    torch.testing.assert_close(features["output"], expected, rtol=1e-5, atol=1e-6)
    assert features["output"].shape == (len(texts), 24 if dense else 32)


def test_the_models_default_prompt_counts(save: Save, texts: list[str], tmp_path: Path) -> None:
    library = import_library("sentence_transformers")
    model = library.SentenceTransformer(
        str(save()), device="cpu", prompts={"q": "a photo of "}, default_prompt_name="q"
    )
    model.save(str(tmp_path))
    encoder = load(tmp_path)
    expected = torch.from_numpy(model.encode(texts))
    torch.testing.assert_close(encode(encoder, texts)["output"], expected, rtol=1e-5, atol=1e-6)
    assert encoder.key().preprocessing["prompt"] == "a photo of "


def test_a_prompt_that_the_pooling_leaves_out(save: Save, texts: list[str]) -> None:
    folder = save(include_prompt=False)
    model = import_library("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    expected = torch.from_numpy(model.encode(texts, prompt="a photo of "))
    output = encode(load(folder, prompt="a photo of "), texts)["output"]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


def test_hidden_states_are_averaged_over_real_tokens(save: Save, texts: list[str]) -> None:
    folder = save()
    features = encode(load(folder), texts)
    transformers = import_library("transformers")
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = transformers.AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].bool()
    assert list(features) == ["hidden_0", "hidden_1", "hidden_2", "output"]
    for number, state in enumerate(out.hidden_states):
        expected = torch.stack([row[real].mean(dim=0) for row, real in zip(state, mask, strict=True)])
        torch.testing.assert_close(features[f"hidden_{number}"], expected, rtol=1e-5, atol=1e-5)
    first = encode(load(folder, pool="cls"), texts)["output"]
    torch.testing.assert_close(first, out.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)


def test_lower_case_and_maximum_length(save: Save) -> None:
    encoder = load(save(lower=True), max_length=4)
    assert encoder.prepare("A DOG").tolist() == encoder.prepare("a dog").tolist()
    assert len(encoder.prepare("a dog " * 9)) == 4
    with pytest.raises(UserError, match="expected at most 16 tokens, found 99"):
        load(save(), max_length=99)


def test_what_the_library_tokenizes_otherwise_is_left_to_it(save: Save) -> None:
    encoder = load(save())
    before = encoder.prepare("two dogs").tolist()
    encoder._same_tokens = False
    assert encoder.prepare("two dogs").tolist() == before


def test_mistakes_are_sentences(save: Save, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected modules\.json in"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"expected the model 'no-one/nothing' .*st:/folder"):
        load_encoder("st:no-one/nothing")
    encoder = load(save())
    with pytest.raises(UserError, match="expected a text, found Image"):
        encoder.prepare(Image.new("RGB", (4, 4)))
