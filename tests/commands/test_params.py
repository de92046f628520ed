"""params.yaml that is missing, broken, or names what is not there: one sentence from every command that reads it."""

from pathlib import Path
from typing import Any

import pytest

from tests.commands.encoders import WORDS
from tests.commands.project import write_params
from tests.commands.running import refused

ALL = ("extract", "align", "evaluate")


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file params.yaml, found none; run the command in a checkout, or say what it needs by flags"),
        (b"", "params.yaml: expected a mapping of sections, found NoneType"),
        (b"- a\n", "params.yaml: expected a mapping of sections, found list"),
        (b"a: [\n", "params.yaml: expected YAML, found while parsing a flow node"),
        (b"\xff\xfe\x00", "params.yaml: expected YAML, found 'utf-8' codec"),
    ],
)
def test_no_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    assert message in refused(command)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("extract", {"encoders": None}, "params.yaml: expected a section 'encoders' with settings, found none"),
    ("extract", {"encoders": {"pixels": 5, "words": WORDS}}, "extract, pixels: expected valid settings, found encoder"),
    (
        "extract",
        {"image_encoder": "lite"},
        "params.yaml: encoders: expected a known encoder (pixels, words), found 'lit",
    ),
    ("extract", {"image_encoder": None}, "params.yaml: expected image_encoder with a name, found none"),
    (
        "extract",
        {"datasets": "shapes"},
        "params.yaml: expected datasets as a list of names, such as [a, b], found 'sha",
    ),
    ("extract", {"datasets": ["nope"]}, "data/0_raw/nope: expected a raw data set's folder, found none"),
    ("extract", {"datasets": []}, "expected datasets, image_encoder and text_encoder in it, found none"),
    ("extract", {"extract": 5}, "params.yaml: expected a section 'extract' with settings, found int"),
    ("extract", {"extract": {"layerz": "all"}}, "layerz is unknown (known: dataset, encoder, out, "),
    (
        "extract",
        {"extract": {"layers": 5}},
        "params.yaml: extract, pixels: expected valid settings, found layers should",
    ),
    ("extract", {"extract": {"batch_size": 0}}, "extract, pixels: --batch-size: expected 1 or more, found 0"),
    ("align", {"methods": "cca"}, "params.yaml: expected methods as a list of names, such as [a, b], found 'cca'"),
    ("align", {"methods": [3]}, "params.yaml: expected methods as a list of names, such as [a, b], found [3]"),
    ("align", {"methods": ["nope"]}, "params.yaml: align: --method: expected a known method (info_nce, "),
    ("align", {"align": 5}, "params.yaml: expected a section 'align' with settings, found int"),
    ("align", {"align": {"seeds": [1]}}, "params.yaml: align: expected dataset with a name, found none"),
    ("align", {"align": {"dataset": "nope"}}, "data/1_features/nope/pixels: expected a feature store's folder"),
    ("align", {"align": {"dataset": "shapes", "sseds": [1]}}, "sseds is unknown (known: image, text, out, method, "),
    ("align", {"align": {"dataset": "shapes", "seeds": 1}}, "seeds should be tuple[int, ...], not 1"),
    ("align", {"align": {"dataset": "shapes", "settings": {"trainin": 1}}}, "trainin is unknown (known: loss, "),
    ("align", {"text_encoder": {"a": 1}}, "params.yaml: expected text_encoder with a name, found {'a': 1}"),
    ("evaluate", {"methods": None}, "evaluate: runs: expected a value, or several, found none"),
    ("evaluate", {"methods": 7}, "params.yaml: expected methods as a list of names, such as [a, b], found 7"),
    ("evaluate", {"methods": ["pls"]}, "data/2_projectors/pls: expected a finished run's folder, found no such folder"),
    ("evaluate", {"evaluate": 5}, "params.yaml: expected a section 'evaluate' with settings, found int"),
    ("evaluate", {"evaluate": {"splt": "x"}}, "splt is unknown (known: runs, image, text, out, split, "),
    ("evaluate", {"evaluate": {"split": "later"}}, "expected a known split (train, val, test), found 'later'"),
    ("evaluate", {"evaluate": {"index": "tree"}}, "evaluate: index: expected a known index (auto, torch, flat, ivf, "),
    ("evaluate", {"evaluate": {"zero_shot": "shapes"}}, "evaluate: expected zero_shot as a list of names"),
    ("evaluate", {"evaluate": {"zero_shot": ["nope"]}}, "data/1_features/nope/pixels: expected a feature store's fold"),
    ("evaluate", {"evaluate": {"bootstrap": 1}}, "bootstrap: expected 100 or more, found 1"),
]


@pytest.mark.parametrize(("command", "changes", "message"), WRONG)
def test_wrong_params_name_the_file_that_was_given(
    project: Path, tmp_path: Path, command: str, changes: dict[str, Any], message: str
) -> None:
    own = write_params(tmp_path, **changes).rename(tmp_path / "own.yaml")
    said = refused(command, "--params", own)
    assert message.replace("params.yaml", "own.yaml") in said
    assert "params.yaml" not in said
