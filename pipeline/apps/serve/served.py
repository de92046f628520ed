"""One run as the server holds it: encoders loaded, images and captions indexed in memory, questions answered together.

`open_runs` opens several under names of their own, each encoder loaded once. Everything of a `ServedRun` but `describe`
and `image` is called by the one worker thread.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from pipeline.apps.dual_encoder import DualEncoder, class_prompts
from pipeline.apps.encoders import load_recorded
from pipeline.apps.opening import OpenedRun, open_run
from pipeline.apps.search import CaptionHit, ImageHit, Searcher
from pipeline.apps.serve.schemas import (
    SEEDS_KEPT,
    ClassAnswer,
    ClassProbability,
    FoundCaption,
    FoundImage,
    RunAnswer,
    SearchAnswer,
    Spent,
    StoredImage,
)
from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError, UserError
from pipeline.metrics.classification import classifier
from pipeline.projectors.run_record import StoreRecord
from pipeline.storage.contract import Place
from pipeline.storage.open import is_url, open_storage

Query = Image.Image | int
"""A picture, or the row of a stored one."""
CLASSIFIERS_KEPT = 32
T = TypeVar("T")


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
        self._searchers: OrderedDict[int, Searcher] = OrderedDict()
        self._classifiers: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self.captions_of = self.searcher(model.seed).captions_of
        self._warm()

    def searcher(self, seed: int) -> Searcher:
        """Return the embeddings of a seed's projectors, made when it is first asked for.

        Raises:
            UserError: No such seed.
        """
        return _kept(self._searchers, seed, SEEDS_KEPT, lambda: Searcher(self.model.at_seed(seed), self.opened))

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
        vectors = self._vectors(self.searcher(seed), [picture for picture, _, _ in items])
        scores = [
            vector @ self._classifier(seed, names, template).T
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
                captions=[FoundCaption(**vars(hit)) for hit in said[:top]],
                milliseconds=spent,
            )
            for near, said, (_, top) in zip(images, told, items, strict=True)
        ]

    def _found(self, hit: ImageHit) -> FoundImage:
        return FoundImage(**self.image(self.rows[hit.image_id]).model_dump(), score=hit.score)

    def _classes(self, seed: int, names: Sequence[str], template: str, scores: Tensor, spent: Spent) -> ClassAnswer:
        temperature, source = self.model.run.temperature(seed)
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

    def _classifier(self, seed: int, names: tuple[str, ...], template: str) -> Tensor:
        def make() -> Tensor:
            prompts, owner = class_prompts(names, [template])
            encoded = self.model.at_seed(seed).encode_text(prompts)
            return classifier(encoded, torch.tensor(owner), len(names))

        return _kept(self._classifiers, (seed, names, template), CLASSIFIERS_KEPT, make)

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
        try:
            record = json.loads(self.folder.get("dataset.json")) if self.folder else {}
        except (OSError, ValueError):
            record = {}
        known = record if isinstance(record, dict) else {}
        return {name: str(known.get(name) or "") for name in ("name", "licence", "attribution")}


def open_runs(
    paths: Sequence[Place],
    *,
    image: Sequence[Place] = (),
    text: Sequence[Place] = (),
    data: Place | None = None,
    device: str = "cpu",
) -> list[ServedRun]:
    """Open several runs under names of their own, load their encoders, which they share, and index their stores.

    Raises:
        UserError: A run is named twice.
        PipelineError: A run or its image store is missing or does not fit, or neither of its encoders loads.
    """
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
        ServedRun(name, DualEncoder(run, device=device, loader=load), OpenedRun(run, image, text), data)
        for name, run in zip(unique, map(open_run, paths), strict=True)
    ]


def _kept(cache: "OrderedDict[Any, T]", key: Hashable, most: int, make: Callable[[], T]) -> T:
    """Return what a cache holds under a key, made if it is not there; it keeps the latest ones."""
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
    return cache[key]
