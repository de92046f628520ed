"""What README and docs say is true: commands parse, snippets run, names and files exist, settings are valid."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from pipeline.align.config import align_config
from pipeline.align.recipe import METHODS, make_recipe
from pipeline.cli import app
from pipeline.encoders.packages import PACKAGES
from pipeline.evaluate.config import evaluate_config
from pipeline.extract.config import extract_config, named_stores
from pipeline.projectors.run_record import AlignedRun
from tests.commands.project import DATA, IMAGE, IMAGES, TEXT, make_features
from tests.commands.running import done
from tests.documented import FENCE, PAGES, ROOT, blocks_of

README = PAGES[0].read_text(encoding="utf-8")
SETTINGS = [ROOT / "params.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def part(title: str) -> str:
    """Return a section of the README, its title left out."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def snippet(page: str, start: str) -> str:
    """Return the Python block of a page that begins with a text."""
    blocks = [body for kind, body in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if kind == "python"]
    (found,) = (body for body in blocks if body.startswith(start))
    return str(found)


def whole_commands() -> Iterator[tuple[str, str]]:
    """Yield (page, command) of every command that is written to be typed: in blocks, and in examples of --help."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks_of(page) if block.kind in ("sh", "") for line in block.lines]
        lines += [line for line in re.findall(r"`(pipeline [^`\n]*)`", text) if '"' in line or "--set" in line]
        for line in lines:
            words = shlex.split(line, comments=True)
            starts = [place for place, word in enumerate(words) if place == 0 or words[place - 1] == "&&"]
            for start in starts:
                end = words.index("&&", start) if "&&" in words[start:] else len(words)
                if words[start:end][:1] == ["pipeline"]:
                    yield page.name, shlex.join(words[start + 1 : end])
    for path in sorted((ROOT / "pipeline" / "commands").glob("*.py")):
        for line in re.findall(r"Example: pipeline (.*)", path.read_text(encoding="utf-8")):
            yield path.name, line


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that some words name, and the words that are left for it."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_the_quick_start_is_two_lines() -> None:
    blocks = FENCE.findall(part("Quick start"))
    assert [kind for kind, _ in blocks] == ["sh", "sh"]
    assert all(body.count("\n") == 1 for _, body in blocks)


def test_the_quick_start_names_extras_and_files_that_exist() -> None:
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert extras
    known = set(re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE))
    for text in (README, (ROOT / "data/README.md").read_text(encoding="utf-8")):
        for names in re.findall(r"-e '\.\[([\w,]+)\]'", text):
            assert set(names.split(",")) <= known
        for file in re.findall(r"-c (\S+)", text):
            assert (ROOT / file).is_file()


def test_there_are_commands_to_check() -> None:
    assert len(list(whole_commands())) > 25


@pytest.mark.parametrize(("page", "line"), sorted(set(whole_commands())))
def test_every_command_parses(page: str, line: str) -> None:
    """Parsed by the command itself (names, options, types, what must be there), not run."""
    command, words = leaf(shlex.split(line))
    assert not hasattr(command, "commands"), f"no such command: {line}"
    command.make_context(line, [word for word in words if word not in ("...", "…")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    for line in re.findall(r"`pipeline ([^`\n]*)`", page.read_text(encoding="utf-8")):
        command, words = leaf(line.split())
        if line.startswith(("COMMAND", "-")):
            continue
        assert command.name != "pipeline", line
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_exist(page: Path) -> None:
    """Options that stand alone in code (`--pool auto`) belong to some command of ours."""

    def options(command: Any) -> set[str]:
        below = getattr(command, "commands", {}).values()
        own = {name for option in command.params for name in option.opts}
        return own.union(*map(options, below), {"--help"})

    known = options(typer.main.get_command(app))
    found = set(re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8")))
    assert found <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_methods_of_the_table_exist() -> None:
    rows = [line.split("|")[1] for line in METHODS_PAGE.splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)][1:]
    assert len(names) > 10
    assert set(names) <= set(METHODS)
    assert any(name.endswith("_published") for name in METHODS)
    for line in re.findall(r"`pipeline align (--method \w+ --set [^`]*)`", METHODS_PAGE):
        method, setting = re.fullmatch(r"--method (\w+) --set (\S+)", line).groups()  # type: ignore[union-attr]
        path, value = setting.split("=")
        group, field = path.split(".")
        recipe = make_recipe(method, {group: {field: yaml.safe_load(value)}})
        assert getattr(getattr(recipe, group), field) == yaml.safe_load(value)


def test_packages_of_the_table_exist() -> None:
    text = (ROOT / "docs/encoders.md").read_text(encoding="utf-8")
    named = re.findall(r"`(efficientnet-lite\d|mobilenetv2|all-minilm-l6-v2|all-mpnet-base-v2|-lite\d)`", text)
    assert {name if name[0] != "-" else f"efficientnet{name}" for name in named} == set(PACKAGES)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_settings_are_valid(path: Path) -> None:
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    stores = named_stores(params)
    assert {dataset for dataset, _ in stores} == set(params["data"])
    for dataset, encoder in stores:
        assert extract_config(params, dataset, encoder).out == Path("data/1_features") / dataset / encoder
    for method in params["methods"]:
        assert align_config(params, method).out == Path("data/2_projectors") / method
    assert len(evaluate_config(params).runs) == len(params["methods"])
    for words in params["data"].values():
        command, rest = leaf(["data", *shlex.split(words)])
        command.make_context("data", [*rest, "--out", "x", "--replace"])


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "project"
    make_features(folder)
    return folder


def run(text: str, **paths: str) -> dict[str, Any]:
    """Run a snippet with other paths in it; every path must have stood there."""
    for old, new in paths.items():
        assert old in text
        text = text.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(text, "snippet", "exec"), names)
    return names


LITE0, MINILM = "data/1_features/openmoji/efficientnet-lite0", "data/1_features/openmoji/all-minilm-l6-v2"


def test_the_snippet_of_the_readme_runs(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(features)
    ours = {"data/1_features/photos/lite0": IMAGE, "data/1_features/photos/minilm": TEXT}
    names = run(snippet("README.md", "from pipeline import"), **ours, **{"cat.jpg": f"{DATA}/images/large_red_bar.png"})
    assert AlignedRun.open(Path("data/2_projectors/mine")).method == "fewpairs"
    out = capsys.readouterr().out
    scores = [float(number) for number in re.findall(r"-?\d\.\d+", out.splitlines()[0])]
    image = names["model"].encode_image(f"{DATA}/images/large_red_bar.png")
    assert scores == pytest.approx((image @ names["model"].encode_text(["a cat", "a dog"]).T).tolist(), abs=1e-4)
    assert "<SearchResult 'a dog on a beach': 5 images" in out


def test_the_snippet_about_stores_runs(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(features)
    names = run(snippet("docs/store.md", "from pipeline.store.reader"), **{LITE0: IMAGE})
    assert len(names["store"].ids) == IMAGES
    assert sum(len(view) for view in names["views"]) == IMAGES
    assert len(names["rows"]) == len(names["batch"]) == IMAGES
    torch.testing.assert_close(torch.as_tensor(names["batch"]), names["features"][torch.as_tensor(names["rows"])])


def test_the_encoder_of_the_docs_works(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(features)
    text = snippet("docs/encoders.md", "import numpy")
    Path("my_encoders.py").write_text(text, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "my_encoders", raising=False)
    words = ("--dataset", DATA, "--encoder", "my_encoders:MeanColour", "--out", "x/mean")
    try:
        done("extract", *words, "--quiet")
    finally:
        sys.modules.pop("my_encoders", None)
    found = done("store", "ls", "x/mean", "--json").json()
    assert (found["rows"], [(layer["name"], layer["width"]) for layer in found["layers"]]) == (IMAGES, [("output", 3)])
