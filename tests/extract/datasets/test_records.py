"""The hash rule: stable, close to its shares, and the sources' own names kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.extract.datasets.records import SplitRule, named_splits, official_split


def test_known_ids_keep_their_split_for_ever() -> None:
    known = {"1F600": "train", "2": "val", "15": "val", "5": "test", "6": "test"}
    assert {name: SplitRule().of(name) for name in known} == known
    assert SplitRule(0, 0, 1).of("a") == "test"
    assert SplitRule(0, 1, 0).of("a") == "val"


def test_shares_are_met() -> None:
    found = [SplitRule(0.7, 0.1, 0.2).of(f"id{number}") for number in range(5000)]
    assert abs(found.count("train") / 5000 - 0.7) < 0.03
    assert abs(found.count("val") / 5000 - 0.1) < 0.02
    assert abs(found.count("test") / 5000 - 0.2) < 0.03


@given(st.text())
def test_every_id_has_one(name: str) -> None:
    assert SplitRule().of(name) in ("train", "val", "test")


@pytest.mark.parametrize("text", ["0.8/0.1/0.1", "0.8,0.1,0.1"])
def test_a_rule_is_read(text: str) -> None:
    assert SplitRule.parse(text) == SplitRule()


@pytest.mark.parametrize(
    ("text", "message"), [("0.8/0.1", "three shares"), ("a/b/c", "three shares"), ("0.8/0.3/-0.1", "not negative")]
)
def test_a_wrong_rule_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SplitRule.parse(text)


def test_names_of_sources() -> None:
    names = ("Validation", "dev", "training", "restval", "extra", " test ")
    assert [official_split(name) for name in names] == ["val", "val", "train", "train", "extra", "test"]
    assert named_splits(["train", "val"])
    assert not named_splits([])
    assert not named_splits(["train", "cats"])
