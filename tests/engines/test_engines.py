"""Engines by name, and Ray only where it is asked for."""

import sys
from pathlib import Path

import pytest

from pipeline.engines import Engine, open_engine
from pipeline.errors import MissingExtraError, UnknownNameError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from tests.engines import pieces
from tests.extract.building import IMAGE, write_raw


def test_the_local_engine_is_what_there_was_before(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", images=6, captions=0)
    with open_engine("local") as engine:
        assert type(engine) is Engine
        assert (engine.jobs(None), engine.jobs(3)) == (1, 3)
        assert engine.side_by_side(pieces.square, [2, 3], jobs=1) == [4, 9]
        found = engine.extract(ExtractConfig(dataset=tmp_path / "raw", encoder=IMAGE, out=tmp_path / "a"))
    alone = extract(ExtractConfig(dataset=tmp_path / "raw", encoder=IMAGE, out=tmp_path / "b"))
    assert found.content_digest == alone.content_digest


def test_wrong_words() -> None:
    with pytest.raises(UnknownNameError, match=r"--engine: expected a known engine \(local, ray\), found 'rey'"):
        open_engine("rey").__enter__()
    with pytest.raises(UserError, match="--address auto: expected --engine ray beside it"):
        open_engine("local", "auto").__enter__()


def test_without_ray_one_line_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"not installed; run: pip install 'fewpairs\[ray\]'"):
        open_engine("ray").__enter__()
