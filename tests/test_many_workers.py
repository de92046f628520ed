"""The page about many workers is done word by word, with a small encoder and what the launchers would set."""

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.runtime import share_of
from tests.commands.encoders import PIXELS
from tests.commands.project import DATA, make_source
from tests.commands.running import Outcome, done, refused

PAGE = Path(__file__).resolve().parent.parent / "docs" / "many-workers.md"
STORE = "data/1_features/openmoji/efficientnet-lite0"
OURS = {"data/0_raw/openmoji": DATA, "package:efficientnet-lite0": PIXELS, STORE: "x/store"}
LAUNCHERS = {
    "srun": {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"},
    "torchrun": {"RANK": "5", "WORLD_SIZE": "8"},
    "pipeline": {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0"},
}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield (launcher, words after `pipeline`) of every line of the page's blocks."""
    text = PAGE.read_text(encoding="utf-8")
    for body in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words[0], [OURS.get(word, word) for word in words[words.index("pipeline") + 1 :]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a data set."""
    folder = tmp_path_factory.mktemp("many")
    with contextlib.chdir(folder):
        make_source(folder)
        done("data", "import", "shapes.csv", "--out", DATA, "--quiet")
    return folder


def run(launcher: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Run a command as a launcher would: with its variables alone in the environment."""
    for name in {name for variables in LAUNCHERS.values() for name in variables}:
        monkeypatch.delenv(name, raising=False)
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    return done(*words)


def test_every_command_of_the_page_works(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw)
    digests, seen = [], set[str]()
    for launcher, words in commands():
        if words[0] == "extract":
            shutil.rmtree("x", ignore_errors=True)
            outcome = run(launcher, [*words, "--shard-rows", "8", "--device", "cpu"], monkeypatch)
            digests.append(done("store", "ls", OURS[STORE], "--json").json()["content_digest"])
            if "--worker-index" not in words:
                name, number = next(iter(LAUNCHERS[launcher].items()))
                assert f"worker {number} of 8, because {name}={number} is set in the environment" in outcome.err
            assert "6 shards computed" in outcome.out
        else:
            outcome = run(launcher, words, monkeypatch)
            seen.add(words[1])
            assert outcome.out
    assert len(digests) == 5
    assert len(set(digests)) == 1, "what is said of workers changes nothing"
    assert seen == {"status", "events"}
    events = [json.loads(line) for line in done("store", "events", OURS[STORE]).out.splitlines()]
    assert [event["event"] for event in events][-1] == "finished"
    assert {event["shard"] for event in events if event["event"] == "committed"} == set(range(6))
    found = done("store", "status", OURS[STORE], "--json", "--summary").json()
    assert (found["done"], found["finished"], found["rate"], found["failures"]) == (6, True, None, {})
    assert [worker["state"] for worker in found["workers"]] == ["finished"]


def test_the_environment_alone_changes_no_digest_and_says_so(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw)
    words = ["extract", "--dataset", DATA, "--encoder", PIXELS, "--shard-rows", "8", "--device", "cpu", "--json"]
    one = run("srun", [*words, "--out", "y/one", "--num-workers", "1"], monkeypatch)
    many = run("srun", [*words, "--out", "y/many"], monkeypatch)
    assert "is set in the environment" not in one.err
    assert "is set in the environment" in many.err
    assert one.json()["content_digest"] == many.json()["content_digest"]
    assert "in the environment" not in run("srun", [*words, "--out", "y/quiet", "--quiet"], monkeypatch).err


def test_numbers_that_do_not_fit(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw)
    words = ["extract", "--dataset", DATA, "--encoder", PIXELS, "--out", "z"]
    assert "together, found only --worker-index" in refused(*words, "--worker-index", "1")
    assert "expected 0 to 1, as --num-workers says" in refused(*words, "--worker-index", "2", "--num-workers", "2")
    assert "--lease-seconds: expected more than 0, found 0.0" in refused(*words, "--lease-seconds", "0")
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "RANK: expected 0 to 2, as WORLD_SIZE says, found 9" in refused(*words)
    assert not Path("z").exists()


def test_the_variables_of_the_page_are_the_ones_that_are_read() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for variables in LAUNCHERS.values():
        assert all(f"`{name}`" in text for name in variables)
        number, total = list(variables)[:2]
        with pytest.raises(UserError, match=f"{number}: expected 0 to 1, as {total} says, found 2"):
            share_of(None, None, {number: "2", total: "2"})
