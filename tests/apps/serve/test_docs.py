"""docs/serve.md: every curl line is run against a server, and answers; options and limits are those of the code."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from pipeline.apps.serve import schemas as limits
from tests.apps.serve.asking import encoded
from tests.commands.running import done

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    (curl .+)$", TEXT, re.MULTILINE)
# The names of the documented example → those of the tests' run.
NAMES = {'"fewpairs"': '"run"', '"seed": 1': '"seed": 7', "1F436": "red"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
@pytest.mark.parametrize("line", LINES)
def test_every_curl_line_works(address: str, tmp_path: Path, line: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded())
    for name, own in NAMES.items():
        line = line.replace(name, own)
    words = shlex.split(line.replace("http://127.0.0.1:8000", address))
    result = subprocess.run(
        [*words, "-sS", "--fail-with-body"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    if "-o" in words:
        with Image.open(tmp_path / words[words.index("-o") + 1]) as image:
            assert image.size == (9, 7)
    else:
        assert result.stdout.startswith("{")


def test_every_route_has_a_line() -> None:
    for path in ("runs", "health", "search", "search/image", "zero_shot", "sample", "image/"):
        assert any(re.search(rf"/api/{path}['? \n]|/api/{path}\w", f"{line}\n") for line in LINES), path


def test_the_options_are_all_there() -> None:
    shown = done("serve", "--help").out
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert options == set(re.findall(r"`(--[a-z-]+)", TEXT.split("Keys:")[0]))


def test_the_limits_are_those_of_the_code() -> None:
    assert f"{limits.TOP} at most" in TEXT
    assert f"{limits.UPLOAD_BYTES // 10**6} MB at most" in TEXT
    assert f"{limits.UPLOAD_PIXELS // 10**6} million pixels" in TEXT
    assert f"up to {limits.BATCH} waiting questions" in TEXT
    assert f"{limits.QUEUE} questions may wait" in TEXT
    assert f"head has {limits.HEAD_SECONDS} s to arrive and its body {limits.BODY_SECONDS} s" in TEXT
    assert f"{limits.UPLOADS_HELD} forms are held at a time" in TEXT
    assert limits.DECODED_AT_ONCE == 4
    assert "{small} or {large} pixels".format(**limits.THUMBNAIL_EDGES) in TEXT


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/serve.png").stat().st_size < 300_000
    assert "CC BY-SA 4.0" in TEXT
