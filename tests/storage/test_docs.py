"""docs/remote.md is done line by line, each on another machine, with encoders that need no weights."""

import re
import shlex
from pathlib import Path

import pytest

from tests.commands.encoders import PIXELS, WORDS
from tests.commands.project import DATA, make_source
from tests.commands.running import done
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import names, put

PAGE = Path(__file__).resolve().parents[2] / "docs" / "remote.md"
STAND_INS = {"package:efficientnet-lite0": PIXELS, "package:all-minilm-l6-v2": WORDS}


def test_the_commands_of_the_page(
    tmp_path: Path, bucket: str, s3: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_source(tmp_path)
    done("data", "import", "shapes.csv", "--out", DATA, "--quiet")
    for path in (tmp_path / DATA).rglob("*"):
        if path.is_file():
            put(s3, f"{bucket}/raw/shapes/{path.relative_to(tmp_path / DATA).as_posix()}", path.read_bytes())
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = block.splitlines()
    assert len(commands) == 8
    for number, command in enumerate(commands):
        for said, meant in {**STAND_INS, "s3://bucket": bucket}.items():
            command = command.replace(said, meant)
        machine(f"number {number}")
        program, *words = shlex.split(command)
        assert program == "pipeline"
        assert done(*words).out
    assert {"report.html", "metrics.json"} < set(names(s3, f"{bucket}/reports/first"))
