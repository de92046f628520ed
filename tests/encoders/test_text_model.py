"""Tokens and padding: the same ids as the library's, a fast tokenizer or a slow one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders.libraries import import_library
from pipeline.encoders.text_model import UNLIMITED, TextTokenizer, length_limit, pad
from pipeline.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "runs"]


@pytest.fixture(scope="module", params=["fast", "slow"])
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers = import_library("transformers")
    if request.param == "fast":
        return transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=6)
    legacy = import_library("transformers.models.bert.tokenization_bert_legacy")
    return legacy.BertTokenizerLegacy(str(folder / "vocab.txt"), model_max_length=6)


@pytest.mark.parametrize("text", ["a dog", "Dogs runs", "a dog runs a dog runs a dog", "unheard"])
def test_ids_are_the_librarys(words: Any, text: str) -> None:
    tokenizer = TextTokenizer(words, max_length=6)
    for _ in range(2):  # the library's own call between ours changes nothing
        expected = words(text, truncation=True, max_length=6)["input_ids"]
        assert tokenizer(text).tolist() == expected
        words(text, truncation=True, max_length=3, padding="max_length")


def test_prompt_and_case(words: Any) -> None:
    assert TextTokenizer(words, max_length=6, prompt="A ", lower=True)("DOG").tolist() == [2, 5, 6, 3]
    assert TextTokenizer(words, max_length=6).digest == TextTokenizer(words, max_length=4, prompt="a").digest


def test_padding() -> None:
    rows = [torch.tensor([7, 8, 9]), torch.tensor([5])]
    ids, mask = pad(rows, 0)
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad(rows, 0, length=4)[0].shape == (2, 4)


def test_limits() -> None:
    assert length_limit(None, 10**30, 512, None) == 512
    assert length_limit(None, 10**30) == UNLIMITED
    assert length_limit(7, 512) == 7
    with pytest.raises(UserError, match="expected at most 512 tokens, found 513"):
        length_limit(513, 512, 1024)
