"""One run as the server holds it: encoders loaded, images and captions indexed in memory, questions answered together.

Everything here but `open` and `describe` is called by the one worker thread.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.apps.class_prompts import class_prompts
from pipeline.apps.dual_encoder import DualEncoder
from pipeline.apps.encoders import Loader
from pipeline.apps.places import dataset_folder, open_images, open_texts
from pipeline.apps.search import CaptionHit, ImageHit, Searcher
from pipeline.apps.serve.limits import SEEDS_KEPT
from pipeline.errors import PipelineError
from pipeline.evaluate.data import run_temperature
from pipeline.metrics.classification import classifier
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.side import Side

Query = Image.Image | int
"""A picture, or the row of a stored one."""
CLASSIFIERS_KEPT = 32


@dataclass(frozen=True, kw_only=True)
class Found:
    """Answer to one search."""

    images: tuple[ImageHit, ...]
    captions: tuple[CaptionHit, ...] = ()
    encode: float
    """Milliseconds of the encoder, for all that was asked together."""
    search: float
    """Milliseconds of the search, for all that was asked together."""


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """Answer to one zero-shot question."""

    probability: tuple[float, ...]
    """Of each class [C]."""
    score: tuple[float, ...]
    """Cosine with each class [C]."""
    encode: float
    """Milliseconds."""


class ServedRun:
    """A run with its stores.

    Args:
        name: What the API calls it.
        model: The run.
        images: Its image stores.
        texts: Its text stores, where they are there.
        data: Folder of the pictures; None: where the store says.
    """

    def __init__(
        self, name: str, model: DualEncoder, images: Side, texts: Side | None = None, data: Path | None = None
    ) -> None:
        self.name, self.model, self.images, self.texts = name, model, images, texts
        self.folder = data or dataset_folder(images)
        samples = images.samples
        self.rows = {name: row for row, name in reversed(list(enumerate(samples.image_id)))}
        self.missing: dict[str, PipelineError] = {}
        self._searchers: OrderedDict[int, Searcher] = OrderedDict()
        self._classifiers: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self.captions_of = self.searcher(model.seed).captions_of

    @classmethod
    def open(
        cls,
        path: Path,
        name: str,
        *,
        image: Sequence[Path] = (),
        text: Sequence[Path] = (),
        data: Path | None = None,
        device: str = "cpu",
        loader: Loader | None = None,
    ) -> "ServedRun":
        """Open a run with its stores, load its encoders and build its indexes.

        Raises:
            PipelineError: The run or its image store is missing or does not fit, or neither encoder loads.
        """
        run = AlignedRun.open(path)
        images = open_images(run, image)
        served = cls(name, DualEncoder(run, device=device, loader=loader), images, open_texts(run, images, text), data)
        served._warm()
        return served

    def searcher(self, seed: int) -> Searcher:
        """Return the embeddings of a seed's projectors, made when it is first asked for.

        Raises:
            UserError: No such seed.
        """
        if seed not in self._searchers:
            self._searchers[seed] = Searcher(self.model.at_seed(seed), self.images, self.texts)
        self._searchers.move_to_end(seed)
        while len(self._searchers) > SEEDS_KEPT:
            self._searchers.popitem(last=False)
        return self._searchers[seed]

    def by_texts(self, seed: int, items: Sequence[tuple[str, int]]) -> list[Found]:
        """Answer (text, top) each with images."""
        self.require("text")
        searcher = self.searcher(seed)
        start = time.perf_counter()
        vectors = searcher.model.encode_text([text for text, _ in items])
        encoded = time.perf_counter()
        images = searcher.find_images(vectors, max(top for _, top in items))
        found = time.perf_counter()
        encode, search = 1e3 * (encoded - start), 1e3 * (found - encoded)
        return [
            Found(images=hits[:top], encode=encode, search=search) for hits, (_, top) in zip(images, items, strict=True)
        ]

    def by_pictures(self, seed: int, items: Sequence[tuple[Query, int]]) -> list[Found]:
        """Answer (picture, top) each with images and captions."""
        searcher = self.searcher(seed)
        start = time.perf_counter()
        vectors = self._vectors(searcher, [picture for picture, _ in items])
        encoded = time.perf_counter()
        most = max(top for _, top in items)
        images, captions = searcher.find_images(vectors, most), searcher.find_captions(vectors, most)
        encode, search = 1e3 * (encoded - start), 1e3 * (time.perf_counter() - encoded)
        return [
            Found(images=near[:top], captions=told[:top], encode=encode, search=search)
            for near, told, (_, top) in zip(images, captions, items, strict=True)
        ]

    def classify(self, seed: int, items: Sequence[tuple[Query, tuple[str, ...], str]]) -> list[Probabilities]:
        """Answer (picture, class names, template) each with the probability of every class."""
        self.require("text")
        searcher = self.searcher(seed)
        temperature = run_temperature(self.model.run.record, seed)[0]
        start = time.perf_counter()
        vectors = self._vectors(searcher, [picture for picture, _, _ in items])
        scores = [
            vector @ self._classifier(seed, names, template).T
            for vector, (_, names, template) in zip(vectors, items, strict=True)
        ]
        spent = 1e3 * (time.perf_counter() - start)
        return [
            Probabilities(
                probability=tuple(torch.softmax(row.double() / temperature, dim=0).tolist()),
                score=tuple(row.tolist()),
                encode=spent,
            )
            for row in scores
        ]

    def require(self, side: str) -> None:
        """Refuse a question to an encoder that did not load.

        Raises:
            PipelineError: What its loading raised.
        """
        if side in self.missing:
            raise self.missing[side]

    def describe(self) -> dict[str, Any]:
        """Return what people want to know of a run, as plain data."""
        run, samples = self.model.run, self.images.samples
        return {
            "name": self.name,
            "method": run.method,
            "seeds": list(run.seeds),
            "dim": run.dim,
            "encoders": {side: [record.spec or "unknown" for record in run.stores[side]] for side in run.stores},
            "layers": {side: list(layers) for side, layers in run.layers.items()},
            "images": len(samples),
            "captions": sum(map(len, self.captions_of.values())),
            "labels": sorted({label for label in samples.label if label}),
            "can": {side: side not in self.missing for side in run.stores},
            "dataset": self._dataset(),
        }

    def _vectors(self, searcher: Searcher, pictures: Sequence[Query]) -> Tensor:
        if any(isinstance(picture, Image.Image) for picture in pictures):
            self.require("image")
        new = [picture for picture in pictures if isinstance(picture, Image.Image)]
        encoded = iter(searcher.model.encode_image(new))
        return torch.stack(
            [next(encoded) if isinstance(each, Image.Image) else searcher.vector(each)[0] for each in pictures]
        )

    def _classifier(self, seed: int, names: tuple[str, ...], template: str) -> Tensor:
        key = (seed, names, template)
        if key not in self._classifiers:
            prompts, owner = class_prompts(names, [template])
            encoded = self.model.at_seed(seed).encode_text(prompts)
            self._classifiers[key] = classifier(encoded, torch.tensor(owner), len(names))
        self._classifiers.move_to_end(key)
        while len(self._classifiers) > CLASSIFIERS_KEPT:
            self._classifiers.popitem(last=False)
        return self._classifiers[key]

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
            record = json.loads(((self.folder or Path()) / "dataset.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {}
        known = record if isinstance(record, dict) and self.folder else {}
        return {name: str(known.get(name) or "") for name in ("name", "licence", "attribution")}
