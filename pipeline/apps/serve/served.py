"""One run as the server holds it: encoders loaded, images and captions indexed in memory, questions answered together.

`open_runs` opens several under names of their own, each encoder loaded once. Everything of a `ServedRun` but `describe`
and `image` is called by the one worker thread.
"""

import io
import json
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from pipeline.apps.config import ServeConfig
from pipeline.apps.dual_encoder import DualEncoder, load_recorded
from pipeline.apps.opening import OpenedRun, open_run
from pipeline.apps.searcher import CaptionHit, ImageHit, Searcher
from pipeline.apps.serve.schemas import (
    CLASSIFIERS_KEPT,
    SEEDS_KEPT,
    THUMBNAIL_EDGES,
    THUMBNAILS_KEPT,
    ApiError,
    ClassAnswer,
    ClassProbability,
    FoundImage,
    RunAnswer,
    SearchAnswer,
    Spent,
    StoredImage,
)
from pipeline.encoders.base import Encoder
from pipeline.encoders.load import trust_modules
from pipeline.errors import PipelineError, RejectedInputError, UserError
from pipeline.extract.decode import decode_image
from pipeline.files import read_json
from pipeline.projectors.run_record import StoreRecord
from pipeline.storage.contract import Place
from pipeline.storage.local import is_url, open_storage

Query = Image.Image | int
"""A picture, or the row of a stored one."""
QUALITY = 90


class ServedRun:
    """A run with its stores, its encoders loaded.

    Args:
        name: What the API calls it.
        model: The run.
        opened: Its stores.
        pictures: Folder of the pictures (default: where the store says).

    Raises:
        PipelineError: Neither encoder loads.
    """

    def __init__(self, name: str, model: DualEncoder, opened: OpenedRun, pictures: Place | None = None) -> None:
        self.name, self.model, self.opened = name, model, opened
        self.folder = opened.pictures if pictures is None else open_storage(pictures)
        self.rows = {name: row for row, name in reversed(list(enumerate(opened.images.samples.image_id)))}
        self.missing: dict[str, PipelineError] = {}
        self.searcher = lru_cache(SEEDS_KEPT)(self._searcher)
        self.classifier = lru_cache(CLASSIFIERS_KEPT)(self._classifier)
        self.thumbnail = lru_cache(THUMBNAILS_KEPT)(self._thumbnail)
        self.captions_of = self.searcher(model.seed).captions_of
        self._warm()

    def by_texts(self, seed: int, items: Sequence[tuple[str, int]]) -> list[SearchAnswer]:
        """Answer (text, top) each with images."""
        self.require("text")
        texts = [text for text, _ in items]
        return self._answers(seed, items, lambda searcher: searcher.model.encode_text(texts), captions=False)

    def by_pictures(self, seed: int, items: Sequence[tuple[Query, int]]) -> list[SearchAnswer]:
        """Answer (picture, top) each with images and captions."""
        pictures = [picture for picture, _ in items]
        return self._answers(seed, items, lambda searcher: self._vectors(searcher, pictures), captions=True)

    def classify(self, seed: int, items: Sequence[tuple[Query, tuple[str, ...], str]]) -> list[ClassAnswer]:
        """Answer (picture, class names, template) each with the probability of every class."""
        self.require("text")
        start = time.perf_counter()
        searcher = self.searcher(seed)
        pictures = self._vectors(searcher, [picture for picture, _, _ in items])
        vectors = self.model.at_seed(seed).for_classification(pictures)
        scores = [
            vector @ self.classifier(seed, names, template).T
            for vector, (_, names, template) in zip(vectors, items, strict=True)
        ]
        spent = Spent(encode=1e3 * (time.perf_counter() - start), search=0.0)
        return [
            self._classes(seed, names, template, row, spent)
            for row, (_, names, template) in zip(scores, items, strict=True)
        ]

    def require(self, side: str) -> None:
        """Refuse a question to an encoder that did not load.

        Raises:
            PipelineError: What its loading raised.
        """
        if side in self.missing:
            raise self.missing[side]

    def image(self, row: int) -> StoredImage:
        """Return what people want to know of the image in a row of the store."""
        samples = self.opened.images.samples
        name = samples.image_id[row]
        path = f"/api/image/{quote(name, safe='')}?run={quote(self.name, safe='')}"
        captions = list(self.captions_of.get(name, ()))
        return StoredImage(image_id=name, captions=captions, label=samples.label[row], thumbnail=path)

    def describe(self) -> RunAnswer:
        """Return what people want to know of the run."""
        run, samples = self.model.run, self.opened.images.samples
        return RunAnswer(
            name=self.name,
            method=run.method,
            seeds=list(run.seeds),
            dim=run.dim,
            encoders={side: [record.spec or "unknown" for record in run.stores[side]] for side in run.stores},
            layers={side: list(layers) for side, layers in run.layers.items()},
            images=len(samples),
            captions=sum(map(len, self.captions_of.values())),
            labels=sorted({label for label in samples.label if label}),
            can={side: side not in self.missing for side in run.stores},
            dataset=self._dataset(),
        )

    def _answers(
        self,
        seed: int,
        items: Sequence[tuple[Any, int]],
        encode: Callable[[Searcher], Tensor],
        *,
        captions: bool,
    ) -> list[SearchAnswer]:
        searcher, most = self.searcher(seed), max(top for _, top in items)
        start = time.perf_counter()
        vectors = encode(searcher)
        encoded = time.perf_counter()
        images = searcher.find_images(vectors, most)
        told: list[tuple[CaptionHit, ...]] = searcher.find_captions(vectors, most) if captions else [()] * len(items)
        spent = Spent(encode=1e3 * (encoded - start), search=1e3 * (time.perf_counter() - encoded))
        return [
            SearchAnswer(
                run=self.name,
                seed=seed,
                images=[self._found(hit) for hit in near[:top]],
                captions=list(said[:top]),
                milliseconds=spent,
            )
            for near, said, (_, top) in zip(images, told, items, strict=True)
        ]

    def _found(self, hit: ImageHit) -> FoundImage:
        return FoundImage(**self.image(self.rows[hit.image_id]).model_dump(), score=hit.score)

    def _classes(self, seed: int, names: Sequence[str], template: str, scores: Tensor, spent: Spent) -> ClassAnswer:
        temperature, source = self.model.run.temperature(seed, "classification")
        probabilities = torch.softmax(scores.double() / temperature, dim=0).tolist()
        told = [
            ClassProbability(name=name, probability=probability, score=score)
            for name, probability, score in zip(names, probabilities, scores.tolist(), strict=True)
        ]
        return ClassAnswer(
            run=self.name,
            seed=seed,
            template=template,
            temperature=temperature,
            temperature_source=source,
            classes=sorted(told, key=lambda each: -each.probability),
            milliseconds=spent,
        )

    def _vectors(self, searcher: Searcher, pictures: Sequence[Query]) -> Tensor:
        new = [picture for picture in pictures if isinstance(picture, Image.Image)]
        if new:
            self.require("image")
        encoded = iter(searcher.model.encode_image(new))
        return torch.stack(
            [next(encoded) if isinstance(each, Image.Image) else searcher.vector(each)[0] for each in pictures]
        )

    def _searcher(self, seed: int) -> Searcher:
        return Searcher(self.model.at_seed(seed), self.opened)

    def _classifier(self, seed: int, names: tuple[str, ...], template: str) -> Tensor:
        return self.model.at_seed(seed).class_vectors(names, [template])

    def _thumbnail(self, row: int, size: str) -> bytes:
        """Return the picture in a row of the store as JPEG; its path comes from the store, never from a request.

        Raises:
            ApiError: 404; its file is gone, or lies outside the data set's folder.
        """
        if self.folder is None:
            raise _gone("no folder of pictures")
        try:
            path = self.folder.file(self.opened.images.samples.content[row]).resolve()
        except FileNotFoundError as error:
            raise _gone("no such file") from error
        if not path.is_relative_to(self.folder.here.resolve()):
            raise _gone("a file outside the data set's folder")
        return thumbnail(path, THUMBNAIL_EDGES[size])

    def _warm(self) -> None:
        asks: dict[str, Callable[[], object]] = {
            "text": lambda: self.model.encode_text(["a"]),
            "image": lambda: self.model.encode_image([Image.new("RGB", (64, 64))]),
        }
        for side, ask in asks.items():
            try:
                ask()
            except PipelineError as error:
                self.missing[side] = error
        if len(self.missing) == len(asks):
            raise self.missing["text"]
        searcher = self.searcher(self.model.seed)
        searcher.find_images(torch.zeros(1, self.model.run.dim), 1)
        searcher.find_captions(torch.zeros(1, self.model.run.dim), 1)

    def _dataset(self) -> dict[str, str]:
        known: dict[str, Any] = {}
        if self.folder:
            with suppress(OSError, UserError):
                known = read_json(self.folder.file("dataset.json"), "a data set")
        return {name: str(known.get(name) or "") for name in ("name", "licence", "attribution")}


def open_runs(config: ServeConfig) -> list[ServedRun]:
    """Open several runs under names of their own, load their encoders, which they share, and index their stores.

    Raises:
        UserError: A run is named twice, or a module that is trusted is not there.
        PipelineError: A run or its image store is missing or does not fit, or neither of its encoders loads.
    """
    trust_modules(config.trust_module)
    paths = config.runs
    roots = [open_storage(path) for path in paths]
    places = [PurePosixPath(str(root) if is_url(str(root)) else root.here.resolve()) for root in roots]
    if len(set(places)) < len(places):
        raise UserError(expected="different runs", found="one of them twice", where=", ".join(map(str, paths)))
    names = [place.name for place in places]
    unique = [
        name if names.count(name) == 1 else f"{place.parent.name}/{name}"
        for name, place in zip(names, places, strict=True)
    ]
    if len(set(unique)) < len(unique):
        unique = [str(place) for place in places]
    loaded: dict[Hashable, Encoder] = {}

    def load(record: StoreRecord, side: str, device: str) -> Encoder:
        """Return a record's encoder, loaded once; that of another data set's features will do."""
        options = {name: value for name, value in record.key.items() if name != "dataset_digest"}
        key = (record.spec, side, json.dumps(options, sort_keys=True))
        if key not in loaded:
            loaded[key] = load_recorded(record, side, device)
        return loaded[key]

    return [
        ServedRun(
            name,
            DualEncoder(run, device=config.device, loader=load),
            OpenedRun(run, config.store, config.text_store),
            config.data,
        )
        for name, run in zip(unique, map(open_run, paths), strict=True)
    ]


def thumbnail(file: Path, edge: int) -> bytes:
    """Return a picture as JPEG of at most `edge` pixels each way; a smaller one keeps its size.

    Raises:
        ApiError: 404; the file is gone or no picture.
    """

    def reduction(width: int, height: int) -> int:
        return next((times for times in (8, 4, 2) if max(width, height) // times >= 2 * edge), 1)

    try:
        image = decode_image(file, reduction, turn=True)
    except RejectedInputError as error:
        raise _gone(str(error)) from error
    image.info.clear()
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _gone(found: str) -> ApiError:
    return ApiError(
        404, expected="the image's file", found=found, where="image", remedy="start with --data FOLDER of the data set"
    )
