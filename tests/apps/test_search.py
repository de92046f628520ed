"""Search and dual encoder on pictures of plain colours: what must come first is known."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.apps import dual_encoder
from pipeline.apps.config import SearchConfig
from pipeline.apps.dual_encoder import DualEncoder, SideEncoder
from pipeline.apps.search import open_searcher, search
from pipeline.apps.searcher import CaptionHit, ImageHit, SearchResult
from pipeline.errors import KeyMismatchError, UserError
from pipeline.extract.decode import JPEG_RULES
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter
from tests.apps import tiny
from tests.apps.colours import COLOURS, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_text_finds_the_picture(run: Path) -> None:
    result = search(run, "a blue thing", top=2)
    assert [hit.image_id for hit in result.images] == ["blue", "violet"]
    first = result.images[0]
    assert (first.file, first.captions) == ("blue.png", ("something blue",))
    expected = torch.nn.functional.normalize(torch.tensor([[10.0, 10.0, 250.0]]) / 255).half().float()[0, 2]
    assert first.score == pytest.approx(float(expected), abs=1e-3)
    assert result.captions == ()


def test_picture_finds_pictures_and_captions(run: Path, tmp_path: Path) -> None:
    query = tmp_path / "query.png"
    Image.new("RGB", (3, 3), (240, 0, 240)).save(query)
    result = search(run, query, top=3)
    assert result.images[0].image_id == "violet"
    assert result.captions[0].caption == "red and blue"
    assert result.captions[0].image_id == "violet"
    assert len(result.captions) == 3


def test_only_one_split(run: Path) -> None:
    assert {hit.image_id for hit in search(run, "red", split="test").images} == {"blue", "violet"}
    with pytest.raises(UserError, match="expected images in split nowhere, found none"):
        search(run, "red", split="nowhere")


def test_dual_encoder_gives_unit_vectors_of_both_sides(run: Path, tmp_path: Path) -> None:
    model = DualEncoder.open(run)
    files = [tmp_path / f"{name}.png" for name in COLOURS]
    from_files, from_pictures = model.encode_image(files), model.encode_image([Image.open(file) for file in files])
    assert torch.equal(from_files, from_pictures)
    text = model.encode_text(["red", "green"])
    torch.testing.assert_close(torch.cat([from_files, text]).norm(dim=1), torch.ones(6))
    assert (from_files @ text.T).argmax(dim=0).tolist() == [0, 1]
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 3)


def test_one_sample_gives_one_vector(run: Path, tmp_path: Path) -> None:
    """As sentence-transformers has it: a text or a picture [d], a list of one [1, d]."""
    model, file = DualEncoder.open(run), tmp_path / "red.png"
    assert model.encode_text("a red thing").shape == (3,)
    assert torch.equal(model.encode_text("a red thing"), model.encode_text(["a red thing"])[0])
    for one in (file, str(file), Image.open(file)):
        assert torch.equal(model.encode_image(one), model.encode_image([one])[0])
    assert torch.equal(model.encode_text(word for word in ("red", "blue")), model.encode_text(["red", "blue"]))


def test_batches_and_bars_change_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, files = DualEncoder.open(run), [tmp_path / f"{name}.png" for name in COLOURS]
    whole = model.encode_image(files)
    assert capsys.readouterr().err == ""
    for size in (1, 3, 100):
        torch.testing.assert_close(model.encode_image(files, batch_size=size, show_progress=True), whole)
    assert "images" in capsys.readouterr().err


def test_vectors_without_unit_length_and_their_similarity(run: Path) -> None:
    model = DualEncoder.open(run)
    raw = model.encode_text(["red red green", "blue"], normalize=False)
    assert raw.tolist() == [[2, 1, 0], [0, 0, 1]]
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), model.encode_text(["red red green", "blue"]))
    assert model.similarity(raw[0], raw).tolist() == [pytest.approx([1.0, 0.0])]
    assert model.similarity(raw, raw[1]).tolist() == [[0.0], [1.0]]
    assert model.similarity(raw.numpy(), raw).shape == (2, 2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="similarity: expected vectors of width 3, found width 2"):
        model.similarity(raw, raw[:, :2])


def test_a_model_searches_a_store(run: Path, tmp_path: Path) -> None:
    model = DualEncoder.open(run)
    found = model.search(tmp_path / "image", "a blue thing", k=2)
    assert found == search(run, "a blue thing", top=2)
    assert model.search(tmp_path / "image", tmp_path / "red.png", k=1).images[0].image_id == "red"
    assert model.search(tmp_path / "image", Image.open(tmp_path / "green.png")).images[0].image_id == "green"
    assert "<td>image</td><td>tests.apps.tiny:Colours</td><td>output</td>" in model._repr_html_()


def test_a_notebook_sees_the_pictures(run: Path, tmp_path: Path) -> None:
    found = dataclasses.replace(search(run, "a blue thing", top=2), query="<b>blue</b>")
    page = found._repr_html_()
    assert page.count("src='data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;blue" in page
    assert "<b>" not in page
    (tmp_path / "blue.png").unlink()
    assert found._repr_html_().count("src='data:image/jpeg;base64,") == 1


def test_same_features_as_the_store(run: Path, tmp_path: Path) -> None:
    model = DualEncoder.open(run)
    stored = model.run.encode("image", FeatureStore.open(tmp_path / "image").read("output"))
    torch.testing.assert_close(model.encode_image([tmp_path / f"{name}.png" for name in COLOURS]), stored)


def test_files_are_decoded_as_the_store_s_images_were(run: Path) -> None:
    assert SideEncoder(AlignedRun.open(run), "image").reduction is None
    record = dict(AlignedRun.open(run).record)
    record["stores"]["image"][0]["key"]["preprocessing"]["decode"]["jpeg"] = JPEG_RULES["reduced"]
    side = SideEncoder(AlignedRun.write(run, record), "image")
    assert side.reduction == side.encoders[0].reduction


@pytest.mark.parametrize("side", ["image", "text"])
def test_another_encoder_is_refused(run: Path, tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.VERSION, side, 2)
    model = DualEncoder.open(run)
    ask: Callable[[], Any] = {
        "image": lambda: model.encode_image([tmp_path / "red.png"]),
        "text": lambda: model.encode_text(["red"]),
    }[side]
    with pytest.raises(KeyMismatchError, match=r"expected encoder.version = 1, found encoder.version = 2"):
        ask()


def test_hostile_input_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: search(run, "  "), "expected a text to search for"),
        (lambda: search(run, "red", top=0), "k = 0"),
        (lambda: search(run, "red", seed=3), "one of the seeds 7"),
        (lambda: search(run, tmp_path / "none.png"), "none.png: expected a picture"),
        (lambda: search(run, tmp_path / "broken.jpg"), "broken.jpg: expected a picture"),
        (lambda: search(tmp_path / "no-run", "red"), "no-run: expected a finished run's folder"),
        (lambda: search(run, "red", image=[tmp_path / "text"]), "expected a store of image features"),
        (lambda: DualEncoder.open(run).encode_text(["red", 3]), "item 1: expected texts, found int"),  # type: ignore[list-item]
        (lambda: DualEncoder.open(run).encode_image([3]), "item 0: expected pictures: PIL images or files, found int"),  # type: ignore[list-item]
        (lambda: DualEncoder.open(run).encode_text(["red"], batch_size=0), "batch_size: expected 1 or more, found 0"),
        (lambda: DualEncoder.open(run).search(tmp_path / "text", "red"), "expected a store of image features"),
    ]
    for ask, message in cases:
        with pytest.raises(UserError, match=message):
            ask()


def test_a_store_that_moved_is_asked_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "image").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="say where it lies with --store"):
        search(run, "red")
    (tmp_path / "text").rename(tmp_path / "text-moved")
    result = open_searcher(SearchConfig(run=run, store=(tmp_path / "moved",))).by_text("red")
    assert result.images[0].image_id == "red"
    assert result.images[0].captions == ()


def test_a_run_without_a_spec_can_be_opened_but_not_asked(run: Path) -> None:
    record = AlignedRun.open(run).record
    record["stores"]["text"][0]["spec"] = ""
    AlignedRun.write(run, record)
    with pytest.raises(UserError, match="expected the spec of the text encoder"):
        search(run, "red")


def test_images_of_another_data_set_get_no_captions_of_the_run_s(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "other"
    other = Samples(["red"], ["red"], [""], [""], ["red.png"])
    key = dataclasses.replace(FeatureStore.open(tmp_path / "image").key, dataset_digest="another")
    writer = StoreWriter(store, Header(key=key, items=1, layer_names=("output",)))
    for shard in writer.pending(["output"]):
        writer.commit(shard, ["red"], {"output": torch.ones(1, 3).half().numpy()}, [])
    writer.finish(other, {"spec": "tests.apps.tiny:Colours", "dataset": str(tmp_path)})
    assert open_searcher(SearchConfig(run=run, store=(store,))).by_text("red").images[0].captions == ()
    config = SearchConfig(run=run, store=(store,), text_store=(tmp_path / "text",))
    with_captions = open_searcher(config).by_text("red", captions=True)
    assert with_captions.images[0].captions == ("something red",)
    assert [hit.caption for hit in with_captions.captions] == ["something red"]


def test_seeds_share_the_encoders(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DualEncoder.open(run)
    before = model.encode_text(["red"])
    monkeypatch.setattr(dual_encoder, "load_encoder", None)
    assert torch.equal(model.at_seed(7).encode_text(["red"]), before)
    with pytest.raises(UserError, match="expected one of the seeds 7, found 8"):
        model.at_seed(8)


def test_a_picture_in_memory_is_read_like_a_file_and_turned_upright(run: Path, tmp_path: Path) -> None:
    model = DualEncoder.open(run)
    data = (tmp_path / "red.png").read_bytes()
    assert torch.equal(model.encode_image([model.decode(data)]), model.encode_image([tmp_path / "red.png"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 7), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert model.decode((tmp_path / "turned.jpg").read_bytes()).size == (7, 9)
    assert model.encode_image([tmp_path / "turned.jpg"]).shape == (1, 3)
    with pytest.raises(UserError, match="image: expected a picture, found not an image of a known format"):
        model.decode(b"text")
    with pytest.raises(UserError, match=r"9 × 7 pixels \(limit 60\)"):
        model.decode(data, max_pixels=60)


def test_what_a_result_looks_like() -> None:
    image = ImageHit(image_id="i<1>", score=0.5, file="1.png", captions=("<b>bold</b>", "plain"))
    caption = CaptionHit(caption_id="c", score=0.25, caption="a & b", image_id="i<1>")
    result = SearchResult(query="<q>", images=(image,) * 300, captions=(caption,))
    assert repr(result) == "<SearchResult '<q>': 300 images, 1 caption, best i<1> (0.500)>"
    shown = result._repr_html_()
    assert "<figcaption>0.500 i&lt;1&gt;<br>&lt;b&gt;bold&lt;/b&gt;; plain</figcaption>" in shown
    assert "<td>0.250</td><td>a &amp; b</td>" in shown
    assert repr(SearchResult(query="", images=())) == "<SearchResult '': 0 images, 0 captions>"


def test_what_a_model_looks_like(run: Path) -> None:
    model = DualEncoder.open(run)
    assert repr(model) == f"<DualEncoder {model.run.method}, seed {model.seed}, 3 dimensions; {run}>"
