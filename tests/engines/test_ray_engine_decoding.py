"""Decoding shared out among workers, with a Ray that is threads of this process: room, losses, errors, versions."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.encoders.base import LoadOptions
from pipeline.engines import ray_engine
from pipeline.engines.ray_engine import IMAGES_AT_ONCE, Decoder, Decoding, calls_at_once
from pipeline.errors import PipelineError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import open_dataset
from pipeline.extract.items import Item, Items, Prepared, Preparing, caption_items, image_items
from tests.extract.building import IMAGE, TEXT, write_raw
from tests.extract.tiny_encoders import TinyImage, TinyText

IMAGES, BROKEN = 24, 5


class RayError(Exception):
    """As Ray's own: a call or an actor is lost."""


class RayTaskError(RayError):
    """As Ray's own: what a call raised is its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


class GetTimeoutError(RayError):
    """As Ray's own: no answer came in time."""


class Reference:
    """What a call will give."""

    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def future(self) -> "Future[Any]":
        return self._future


class FakeRay:
    """What `Decoding` uses of Ray."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    @staticmethod
    def get(reference: Reference, timeout: float) -> Any:
        try:
            return reference.future().result(timeout)
        except TimeoutError as error:
            raise GetTimeoutError from error


class FakeActor:
    """A decoder in threads, which may be held up before it has loaded, or die at its n-th call."""

    def __init__(
        self, config: ExtractConfig, *, gate: threading.Event | None = None, dies_at: int | None = None
    ) -> None:
        self._decoder = Decoder((str(Path(str(config.dataset)).parent), {"PYTHONPATH": ""}), config)
        self._gate, self._dies_at = gate, dies_at
        self._pool = ThreadPoolExecutor(8)
        self._lock = threading.Lock()
        self.calls = self.under_way = self.most = self.images = 0
        loading = SimpleNamespace(remote=self._method(self._load))
        self.decode = SimpleNamespace(remote=self._method(self._decode), options=lambda max_task_retries: loading)

    def _method(self, function: Callable[..., Any]) -> Callable[..., Reference]:
        def method(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except RayError:
                raise
            except Exception as error:
                raise RayTaskError(error) from error

        return lambda *arguments: Reference(self._pool.submit(method, *arguments))

    def _load(self, nothing: Sequence[Item]) -> None:
        if self._gate is not None:
            self._gate.wait()
        self._decoder.decode(nothing)

    def _decode(self, some: Sequence[Item]) -> Any:
        with self._lock:
            self.calls += 1
            if self.calls == self._dies_at:
                raise RayError("the actor died")
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            answer = self._decoder.decode(some)
        finally:
            with self._lock:
                self.under_way -= 1
        self.images += len(some)
        return answer


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(Path.cwd())  # workers go to their owner's folder
    root = write_raw(tmp_path / "raw", images=IMAGES, captions=3)
    (root / "images" / f"i{BROKEN:03d}.png").write_bytes(b"no picture")
    return root


def config_of(raw: Path, encoder: str = IMAGE) -> ExtractConfig:
    return ExtractConfig(dataset=raw, encoder=encoder, out=raw.parent / "out")


def decoding_with(actors: Sequence[FakeActor], *, workers: int = 1, calls: int = 2) -> Decoding:
    return Decoding(FakeRay, workers, dict.fromkeys(actors, calls))


def cut(items: Items) -> list[list[Item]]:
    positions = range(len(items))
    return [
        [items.at(position) for position in positions[start : start + IMAGES_AT_ONCE]]
        for start in range(0, len(items), IMAGES_AT_ONCE)
    ]


def all_of(preparing: Decoding, items: Items) -> list[Prepared]:
    encoder = TinyImage(LoadOptions())
    with ThreadPoolExecutor(preparing.threads("image")) as pool:
        return [item for found in pool.map(lambda task: preparing(encoder, task), cut(items)) for item in found]


def assert_same(found: Sequence[Prepared], items: Items, number: int = IMAGES) -> None:
    encoder = TinyImage(LoadOptions())
    expected = Preparing(1)(encoder, [items.at(position) for position in range(number)])
    assert [(item.position, item.reason) for item in found] == [(item.position, item.reason) for item in expected]
    for mine, other in zip(found, expected, strict=True):
        if mine.tensor is None or other.tensor is None:
            assert mine.tensor is other.tensor is None
        else:
            assert torch.equal(mine.tensor, other.tensor)
            assert mine.tensor.dtype == other.tensor.dtype


def test_the_same_bytes_and_reasons_wherever(raw: Path) -> None:
    actors = [FakeActor(config_of(raw)), FakeActor(config_of(raw))]
    items = image_items(open_dataset(raw), 1)
    found = all_of(decoding_with(actors, workers=0), items)
    assert_same(found, items)
    assert [item.position for item in found if item.reason] == [BROKEN]
    assert sum(actor.images for actor in actors) == IMAGES


def test_never_more_under_way_than_was_said(raw: Path) -> None:
    actors = [FakeActor(config_of(raw)), FakeActor(config_of(raw))]
    preparing = decoding_with(actors, calls=2)
    assert preparing.threads("image") == 1 + 2 + 2
    assert preparing.threads("text") == 1
    items = image_items(open_dataset(raw), 1)
    for _ in range(3):
        assert_same(all_of(preparing, items), items)
    assert max(actor.most for actor in actors) <= 2


def test_one_that_has_not_loaded_is_not_waited_for(raw: Path) -> None:
    gate = threading.Event()
    late = FakeActor(config_of(raw), gate=gate)
    items = image_items(open_dataset(raw), 1)
    assert_same(all_of(decoding_with([late]), items), items)
    gate.set()
    assert late.images == 0


def test_what_a_lost_one_was_at_is_done_again_and_it_comes_back(raw: Path) -> None:
    dying, other = FakeActor(config_of(raw), dies_at=2), FakeActor(config_of(raw))
    items = image_items(open_dataset(raw), 1)
    preparing = decoding_with([dying, other], workers=0)
    for _ in range(4):
        assert_same(all_of(preparing, items), items)
    assert dying.images + other.images == 4 * IMAGES
    assert dying.calls > 2, "it is used again once it is back"


def test_silence_is_a_loss(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(FakeActor):
        def _decode(self, some: Sequence[Item]) -> Any:
            asked.set()
            never.wait()

    asked, never = threading.Event(), threading.Event()
    monkeypatch.setattr(ray_engine, "_SILENCE", 0.05)
    items = image_items(open_dataset(raw), 1)
    preparing = decoding_with([Silent(config_of(raw))])
    assert preparing._room.get() is None  # the room here is taken, so the silent one is asked
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(all_of, preparing, items)
        asked.wait()
        preparing._room.put(None)
        assert_same(found.result(), items)
    never.set()


def test_all_lost_leaves_this_process(raw: Path) -> None:
    class Gone(FakeActor):
        def _load(self, nothing: Sequence[Item]) -> None:
            raise RayError("the actor died")

    items = image_items(open_dataset(raw), 1)
    assert_same(all_of(decoding_with([Gone(config_of(raw))]), items), items)


def test_texts_stay_here(raw: Path) -> None:
    actor = FakeActor(config_of(raw, TEXT))
    preparing = decoding_with([actor])
    items = caption_items(open_dataset(raw))
    some = [items.at(position) for position in range(len(items))]
    found = preparing(TinyText(LoadOptions()), some)
    assert [item.position for item in found] == list(range(len(items)))
    assert actor.images == 0
    assert preparing.at_once("text") == Preparing(1).at_once("text")


def test_another_version_of_a_library_ends_the_run(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.extract import receipt

    here = receipt.versions()
    answers = iter([{**here, "pillow": "1.0"}, here])  # the decoder's, then this process's
    monkeypatch.setattr(receipt, "versions", lambda: next(answers))
    preparing = decoding_with([FakeActor(config_of(raw))], workers=0)
    items = image_items(open_dataset(raw), 1)
    with pytest.raises(PipelineError, match=r"expected the same pillow on every node \(.*\), found 1\.0; install"):
        preparing(TinyImage(LoadOptions()), cut(items)[0])


def test_builds_of_one_version_for_cpus_and_gpus_do_not_differ(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.extract import receipt

    here = receipt.versions()
    answers = iter([{**here, "torch": "9.1.0+cpu"}, {**here, "torch": "9.1.0+cu130"}])
    monkeypatch.setattr(receipt, "versions", lambda: next(answers))
    preparing = decoding_with([FakeActor(config_of(raw))], workers=0)
    items = image_items(open_dataset(raw), 1)
    assert_same(preparing(TinyImage(LoadOptions()), cut(items)[0]), items, IMAGES_AT_ONCE)


def test_a_file_that_changed_is_the_users_error_and_no_loss(raw: Path) -> None:
    items = image_items(open_dataset(raw), 1)
    source = items.at(0)
    actor = FakeActor(config_of(raw))
    (raw / open_dataset(raw).images[0].file).write_bytes(b"other bytes")
    with pytest.raises(UserError, match=r"as it was when this run began, found other bytes; run again"):
        decoding_with([actor], workers=0)(TinyImage(LoadOptions()), [source])
    assert actor.calls == 1


def test_an_encoder_that_a_node_lacks_is_said(raw: Path) -> None:
    preparing = decoding_with([FakeActor(config_of(raw, "nowhere_at_all:Class"))], workers=0)
    items = image_items(open_dataset(raw), 1)
    with pytest.raises(UserError, match="nowhere_at_all"):
        preparing(TinyImage(LoadOptions()), cut(items)[0])


@pytest.mark.parametrize(("cpus", "encoders", "expected"), [(8, 4, 4), (32, 4, 16), (1, 8, 1), (3, 1, 6)])
def test_every_encoder_has_the_same_share(cpus: int, encoders: int, expected: int) -> None:
    assert calls_at_once(cpus, encoders) == expected
