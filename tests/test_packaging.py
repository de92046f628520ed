"""What pyproject.toml, the constraints, the workflow and the citation say of each other."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FAISS = {"faiss-cpu", "faiss-gpu"}


def closure(extra: str) -> Iterator[Requirement]:
    """Yield what an extra asks for, the extras that it names included."""
    for text in EXTRAS[extra]:
        wanted = Requirement(text)
        if canonicalize_name(wanted.name) == PROJECT["name"]:
            for inner in wanted.extras:
                yield from closure(inner)
        else:
            yield wanted


def everything() -> list[Requirement]:
    return [*map(Requirement, PROJECT["dependencies"]), *(each for extra in EXTRAS for each in closure(extra))]


@pytest.mark.parametrize("extra", EXTRAS)
def test_no_extra_brings_both_kinds_of_faiss(extra: str) -> None:
    assert len({canonicalize_name(each.name) for each in closure(extra)} & FAISS) <= 1


def test_only_cpu_and_gpu_are_rivals() -> None:
    """So `cpu` or `gpu` goes with any other extra."""
    with_faiss = {extra for extra in EXTRAS if {canonicalize_name(each.name) for each in closure(extra)} & FAISS}
    assert with_faiss == {"cpu", "gpu"}


def test_ranges_of_one_package_meet() -> None:
    """Whatever extras are chosen together, the newest lower bound lies in every range."""
    ranges: dict[str, list[SpecifierSet]] = {}
    for each in everything():
        ranges.setdefault(canonicalize_name(each.name), []).append(each.specifier)
    for name, sets in ranges.items():
        bounds = [one.version for each in sets for one in each if one.operator in (">=", "==")]
        assert not bounds or any(all(bound in each for each in sets) for bound in bounds), name


def test_pins_lie_in_the_ranges() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints" / "cpu.txt").read_text().splitlines() if "==" in line
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for each in everything():
        version = pins.get(canonicalize_name(each.name))
        assert version is None or version in each.specifier, f"{each} and {version}"


def test_the_pythons_are_the_same_everywhere() -> None:
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each) for each in PROJECT["classifiers"]]
    pythons = [found[1] for found in named if found]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_every_job_runs_steps_with_pinned_actions_and_a_limit(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert {"runs-on", "timeout-minutes", "steps"} <= set(job), name
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1, name
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), name


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {"message", "title", "authors"} <= set(citation)
    for each in citation["references"]:
        assert {"type", "title", "authors"} <= set(each)


@pytest.mark.parametrize("file", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda file: file.name)
def test_images_install_extras_that_exist_and_copy_files_that_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    (names,) = re.findall(r"-e '\.\[([\w,]+)\]'", text)
    assert set(names.split(",")) <= set(EXTRAS)
    for constraint in re.findall(r"-c (\S+)", text):
        assert (ROOT / constraint).is_file()
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
