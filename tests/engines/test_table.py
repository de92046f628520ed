"""Engines by name, and Ray only where it is asked for."""

import sys
from pathlib import Path

import pytest

from pipeline.engines import cluster
from pipeline.engines.local import LocalEngine
from pipeline.engines.table import open_engine
from pipeline.errors import MissingExtraError, UnknownNameError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from tests.engines import pieces
from tests.extract.building import IMAGE, write_raw


def test_the_local_engine_is_what_there_was_before(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", images=6, captions=0)
    with open_engine("local") as engine:
        assert isinstance(engine, LocalEngine)
        assert (engine.jobs(None), engine.jobs(3)) == (1, 3)
        assert engine.side_by_side(pieces.square, [2, 3], jobs=1) == [4, 9]
        found = engine.extract(ExtractConfig(dataset=tmp_path / "raw", encoder=IMAGE, out=tmp_path / "a"))
    alone = extract(ExtractConfig(dataset=tmp_path / "raw", encoder=IMAGE, out=tmp_path / "b"))
    assert found.content_digest == alone.content_digest


def test_wrong_words() -> None:
    with pytest.raises(UnknownNameError, match=r"--engine: expected a known engine \(local, ray\), found 'rey'"):
        open_engine("rey")
    with pytest.raises(UserError, match="--address auto: expected --engine ray beside it"):
        open_engine("local", "auto")


def test_without_ray_one_line_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"not installed; run: pip install 'fewpairs\[ray\]'"):
        open_engine("ray")


class NoCluster:
    """A Ray that finds no cluster."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def init(self, **options: object) -> None:
        self.calls += 1
        raise self.error

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize(
    ("address", "error", "message", "calls"),
    [
        ("10.0.0.9:6379", ConnectionError("no"), "--address 10.0.0.9:6379: expected a Ray cluster, found none that", 1),
        ("auto", RuntimeError("InvalidAuthToken"), "found one that wants another token; export RAY_AUTH_MODE=token", 1),
        (None, Exception("The current node timed out during startup."), "a Ray that starts on this machine, found", 3),
    ],
)
def test_no_cluster_is_one_sentence(
    address: str | None, error: Exception, message: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = NoCluster(error)
    monkeypatch.setattr(cluster, "load_ray", lambda: fake)
    monkeypatch.setattr(cluster, "_hush", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=message):
        cluster.Cluster(address)
    assert fake.calls == calls
