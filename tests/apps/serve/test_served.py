"""A run as the server holds it: what happens when files, encoders or stores are not there; names; thumbnails kept."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.apps.config import ServeConfig
from pipeline.apps.serve import served
from pipeline.apps.serve.schemas import ApiError
from pipeline.apps.serve.served import ServedRun, open_runs, thumbnail
from pipeline.apps.serve.server import create_app
from pipeline.errors import KeyMismatchError, UserError
from pipeline.projectors.run_record import AlignedRun
from tests.apps import tiny
from tests.apps.colours import make_run
from tests.apps.serve.asking import encoded, upload
from tests.apps.serve.conftest import BASE


def opened(*paths: Path, data: Path | None = None) -> list[ServedRun]:
    return open_runs(ServeConfig(runs=paths, data=data))


def test_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [make_run(tmp_path / name) for name in "ab"]
    assert [run.name for run in opened(*paths)] == ["a/run", "b/run"]
    with pytest.raises(UserError, match="expected different runs, found one of them twice"):
        opened(paths[0], paths[0])


def test_runs_share_encoders(runs: list[ServedRun]) -> None:
    first, second = (run.model.side("text").encoders for run in runs)
    assert first[0] is second[0]


def test_an_encoder_that_does_not_load_leaves_the_other(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    record = AlignedRun.open(path).record
    record["stores"]["image"][0]["spec"] = ""
    AlignedRun.write(path, record)
    with TestClient(create_app(opened(path)), base_url=BASE) as client:
        assert client.post("/api/search", json={"text": "red"}).json()["images"][0]["image_id"] == "red"
        refused = client.post("/api/search/image", files=upload(encoded()))
        assert refused.status_code == 422
        assert refused.json()["expected"] == "the spec of the image encoder in the run's record"
        stored = client.post("/api/search/image", files={"image_id": (None, "blue")})
        assert stored.json()["images"][0]["image_id"] == "blue"
        assert client.get("/api/runs").json()["runs"][0]["can"] == {"image": False, "text": True}


def test_no_encoder_at_all_is_refused_before_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path)
    monkeypatch.setitem(tiny.VERSION, "image", 2)
    monkeypatch.setitem(tiny.VERSION, "text", 2)
    with pytest.raises(KeyMismatchError, match=r"expected encoder\.version = 1, found encoder\.version = 2"):
        opened(path)


def test_without_captions(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    shutil.rmtree(tmp_path / "text")
    with TestClient(create_app(opened(path)), base_url=BASE) as client:
        answer = client.post("/api/search/image", files=upload(encoded())).json()
        assert (answer["images"][0]["image_id"], answer["images"][0]["captions"], answer["captions"]) == ("red", [], [])


def test_pictures_that_are_gone_or_lie_elsewhere(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    (run,) = opened(path)
    (tmp_path / "red.png").unlink()
    Image.new("RGB", (5, 5)).save(tmp_path.parent / "outside.png")
    run.opened.images.samples.content[run.rows["blue"]] = "../outside.png"
    (tmp_path / "green.png").unlink()
    (tmp_path / "green.png").symlink_to(tmp_path.parent / "outside.png")
    with TestClient(create_app([run]), base_url=BASE) as client:
        for name, found in (("red", "no such file"), ("blue", "outside"), ("green", "outside")):
            answer = client.get(f"/api/image/{name}")
            assert answer.status_code == 404
            assert found in answer.json()["found"]
            assert str(tmp_path) not in answer.text
    run.folder = None
    with pytest.raises(ApiError):
        run.thumbnail(3, "small")


def test_pictures_may_lie_in_another_folder(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "red.png").rename(moved / "red.png")
    (run,) = opened(path, data=moved)
    assert run.thumbnail(run.rows["red"], "small")[:2] == b"\xff\xd8"


def test_what_is_kept_is_made_once_and_bounded(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEEDS_KEPT", "CLASSIFIERS_KEPT", "THUMBNAILS_KEPT"):
        monkeypatch.setattr(served, name, 2)
    (run,) = opened(paths[0])
    first = run.thumbnail(0, "small")
    assert run.thumbnail(0, "small") is first
    for row in (1, 2, 3):
        run.thumbnail(row, "small")
    assert run.thumbnail(0, "small") == first
    answers = [run.classify(7, [(0, ("red", name), "{c}")])[0] for name in ("a", "b", "c", "a")]
    assert answers[0].classes == answers[3].classes
    for kept in (run.thumbnail, run.classifier, run.searcher):
        assert kept.cache_info().currsize <= 2 == kept.cache_info().maxsize


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(4000, 2000, (384, 192)), (300, 600, (192, 384)), (9, 7, (9, 7))]
)
def test_thumbnails_are_small_and_never_enlarged(
    tmp_path: Path, width: int, height: int, expected: tuple[int, int]
) -> None:
    Image.new("RGB", (width, height), (10, 200, 30)).save(tmp_path / "x.jpg")
    (tmp_path / "made.jpg").write_bytes(thumbnail(tmp_path / "x.jpg", 384))
    with Image.open(tmp_path / "made.jpg") as image:
        assert image.size == expected
        assert not image.getexif()


def test_each_seed_has_its_own_embeddings(runs: list[ServedRun]) -> None:
    for seed in (7, 8, 7):
        assert runs[0].by_texts(seed, [("red", 1)])[0].images[0].image_id == "red"
        assert runs[0].searcher(seed).model.seed == seed
