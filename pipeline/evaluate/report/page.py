"""What a report is made of, as plain data: tables, pictures, example queries, and how numbers are written in it.

Strings are text: in HTML every one of them is escaped. Only `Picture.svg` goes in as it is; it comes from
`pipeline.evaluate.figures`, which escapes what it draws. Examples are a fixed random sample of the best run's queries
and its worst failures; thumbnails are small JPEGs as base64, from the data set's own folder and from nowhere else.
"""

import base64
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, run_features
from pipeline.evaluate.features import Duplicates, Probe
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT, Measure, Ranks, RunResult
from pipeline.heif import register
from pipeline.indexes.index import Index, build_index
from pipeline.indexes.recall import recall_against_exact
from pipeline.projectors.run_record import AlignedRun
from pipeline.storage.contract import Storage

ARROWS = {IMAGE_RETRIEVAL: "text→image", TEXT_RETRIEVAL: "image→text"}
SHOWN = 5
RECALL_QUERIES = 256
EDGE = 176


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large number of the first screen."""

    label: str
    value: str
    spread: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Caveat:
    """Something that a reader must know before believing a number."""

    title: str
    text: str
    grave: bool = False
    """It may turn the verdict round, so the page shows it unfolded."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell: what is shown, what it is sorted by, whether it is the best of its column."""

    text: str
    sub: str = ""
    value: float | None = None
    best: bool = False

    @classmethod
    def percent(cls, value: float, sub: str = "", *, best: bool = False) -> "Cell":
        """Return a cell that shows a fraction as percent and is sorted by it."""
        return cls(text=percent(value), value=value, sub=sub, best=best)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A sortable table; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[str, ...] = ()
    narrow: bool = False
    """Takes no more room than it needs; narrow tables stand side by side."""

    @classmethod
    def of_runs(
        cls,
        runs: Iterable[RunResult],
        head: Sequence[str],
        cells: Callable[[RunResult], Iterable[Cell]],
        caption: str,
        *,
        narrow: bool = False,
    ) -> "Table":
        """Return a table with a row a run: its name, then its cells."""
        rows = tuple((Cell(text=run.name), *cells(run)) for run in runs)
        return cls(caption=caption, head=tuple(head), rows=rows, narrow=narrow)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with its caption. `svg` is trusted markup."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Thumb:
    """An answer to a query: a picture, a caption or both."""

    image: str = ""
    """Base64 of a JPEG; empty where there is no picture."""
    text: str = ""
    note: str = ""
    right: bool = False


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and what was found for it, best first."""

    query: str
    note: str
    answers: tuple[Thumb, ...]
    image: str = ""
    missed: Thumb | None = None
    """The right answer, where it is not among those shown."""


@dataclass(frozen=True, kw_only=True)
class ExampleGroup:
    """Examples under one heading, folded away or not."""

    title: str
    lead: str
    examples: tuple[Example, ...]
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the report."""

    id: str
    title: str
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    groups: tuple[ExampleGroup, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    """(title, text) of things to look up, in a monospaced box behind a board."""
    open: bool = False
    """Whether the page shows it unfolded."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole report."""

    title: str
    eyebrow: str
    verdict: str
    reasons: tuple[str, ...]
    tiles: tuple[Tile, ...]
    figure: Picture | None
    caveats: tuple[Caveat, ...]
    short: Table | None = None
    """All runs by their headline measures, for the first screen."""
    sections: tuple[Section, ...] = ()


@dataclass
class Pictures:
    """A data set's folder, asked for thumbnails.

    Args:
        folder: The folder; None or missing leaves every picture out.
        missing: How many files could not be shown.
    """

    folder: Storage | None
    missing: int = 0
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def available(self) -> bool:
        """Whether the folder is there."""
        return self.folder is not None and not self.folder.absent()

    @property
    def note(self) -> str:
        """Why pictures are missing; empty where none is."""
        if not self.available:
            where = f" ({self.folder})" if self.folder else ""
            return f"Pictures are left out: the data set's folder{where} is not here."
        return f"{self.missing} pictures could not be shown." if self.missing else ""

    def thumbnail(self, file: str) -> str:
        """Return a file of the folder as base64 of a square JPEG; empty where it cannot be shown."""
        if self.folder is None or not self.available:
            return ""
        if file not in self._known:
            try:
                path = self.folder.file(file).resolve()
                inside = path.is_relative_to(self.folder.here.resolve())
                self._known[file] = encode_thumbnail(path) if inside else ""
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
                self._known[file] = ""
            self.missing += not self._known[file]
        return self._known[file]


def encode_thumbnail(path: Path, edge: int = EDGE) -> str:
    """Return a picture as base64 of a square JPEG of so many pixels, cropped in the middle.

    Raises:
        OSError: The file is no picture or is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        register()
        with Image.open(path) as image:
            image.draft("RGB", (edge, edge))
            picture = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (edge, edge))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the page speaks of."""

    board: Leaderboard
    """The runs."""
    pairs: TestPairs
    """The test pairs."""
    sets: Sequence[ZeroShotSet]
    """The sets to classify."""
    config: EvaluateConfig
    """The settings of this evaluation."""
    duplicates: Duplicates
    """What the test split shares with the training split."""
    probes: Sequence[Probe]
    """What labels can be read off the features."""
    examples: Sequence[ExampleGroup]
    """Example queries."""
    pictures: Pictures
    """Where thumbnails come from."""
    surroundings: Mapping[str, str]
    """Versions, hardware and times of this evaluation."""


@dataclass(frozen=True)
class Gallery:
    """Embeddings of the test pairs by one seed, indexed both ways.

    Args:
        pairs: The test pairs.
        vectors: Modality → embeddings: images [M, d], captions [P, d].
        indexes: Modality → index of its embeddings.
        pictures: Where thumbnails come from.
    """

    pairs: TestPairs
    vectors: Mapping[str, Tensor]
    indexes: Mapping[str, Index]
    pictures: Pictures

    @classmethod
    def build(cls, result: RunResult, pairs: TestPairs, config: EvaluateConfig, pictures: Pictures) -> "Gallery":
        """Embed and index the test pairs by a run's first seed."""
        run = AlignedRun.open(result.address)
        asked = ((pairs.image, pairs.pairs.image_rows), (pairs.text, pairs.pairs.caption_rows))
        vectors = {
            side.modality: run.encode(side.modality, run_features(run, side, rows), run.seeds[0])
            for side, rows in asked
        }
        indexes = {name: build_index(part, config.index, config.seed) for name, part in vectors.items()}
        return cls(pairs, vectors, indexes, pictures)

    def index_recall(self) -> dict[str, float]:
        """Return the recall@10 of an approximate index against exact search, by direction; empty for an exact one."""
        return {
            f"{side}_retrieval_index_recall@10": recall_against_exact(
                self.indexes[side], self.vectors[side], self.vectors[asked][:RECALL_QUERIES]
            )
            for side, asked in (("image", "text"), ("text", "image"))
            if not self.indexes[side].kind.exact
        }

    def examples(self, asked: str, queries: Sequence[int], ranks: Ranks) -> tuple[Example, ...]:
        """Return captions ("text") as queries with the images found for them, or images with captions."""
        other = "image" if asked == "text" else "text"
        _, found = self.indexes[other].search(self.vectors[asked][torch.tensor(queries, dtype=torch.int64)], SHOWN)
        rows = zip(queries, found.tolist(), strict=True)
        return tuple(self._example(asked, other, query, row, int(ranks[query])) for query, row in rows)

    def _example(self, asked: str, other: str, query: int, found: Sequence[int], rank: int) -> Example:
        owner = self.pairs.pairs.caption_image
        right = owner[[query]] if asked == "text" else np.flatnonzero(owner == query)
        held = [position for position in found if position >= 0]
        missed = None
        if not np.isin(held, right).any():
            best = right[int((self.vectors[other][right] @ self.vectors[asked][query]).argmax())]
            missed = self._shown(other, int(best), f"rank {rank:,}", right=True)
        question = self._shown(asked, query)
        return Example(
            query=question.text,
            note=f"{'right image' if asked == 'text' else 'best right caption'} at rank {rank:,}",
            answers=tuple(self._shown(other, at, str(n), right=at in right) for n, at in enumerate(held, 1)),
            image=question.image,
            missed=missed,
        )

    def _shown(self, modality: str, position: int, note: str = "", *, right: bool = False) -> Thumb:
        """Return a caption's words, or an image's picture, its id where there is none."""
        if modality == "text":
            words = self.pairs.text.samples.content[int(self.pairs.pairs.caption_rows[position])]
            return Thumb(text=words, note=note, right=right)
        row, samples = int(self.pairs.pairs.image_rows[position]), self.pairs.image.samples
        picture = self.pictures.thumbnail(samples.content[row])
        return Thumb(image=picture, text="" if picture else samples.image_id[row], note=note, right=right)


def example_groups(result: RunResult, gallery: Gallery, config: EvaluateConfig) -> tuple[ExampleGroup, ...]:
    """Return a random sample and the worst failures, captions and images as queries, by the run's first seed."""
    size = config.examples
    if not size:
        return ()
    drawn = "Drawn once with the seed of this evaluation, not picked. The first five images found, best first."
    again = "Drawn the same way. The first five captions found, best first."
    fault = "The captions whose image came last. Often the caption is at fault, not the model."
    ranks = {
        "text": result.answers[IMAGE_RETRIEVAL].queries.ranks[0],
        "image": result.answers[TEXT_RETRIEVAL].queries.ranks[0],
    }
    some = {asked: sample(len(held), size, config.seed) for asked, held in ranks.items()}
    last = {asked: worst(held, size) for asked, held in ranks.items()}
    groups = (
        ("Captions asked for images: a random sample", drawn, "text", some),
        ("Images asked for captions: a random sample", again, "image", some),
        ("The worst failures, captions asked for images", fault, "text", last),
        ("The worst failures, images asked for captions", "The images whose captions came last.", "image", last),
    )
    return tuple(
        ExampleGroup(
            title=title, lead=lead, examples=gallery.examples(asked, chosen[asked], ranks[asked]), open=number == 0
        )
        for number, (title, lead, asked, chosen) in enumerate(groups)
    )


def sample(count: int, size: int, seed: int) -> list[int]:
    """Return a fixed random sample of positions, in rising order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())


def worst(ranks: Ranks, size: int) -> list[int]:
    """Return the positions of the largest ranks, the worst first, leaving out queries that were answered rightly."""
    order = np.lexsort((np.arange(len(ranks)), -ranks))[:size]
    return [int(position) for position in order if ranks[position] > 1]


def percent(value: float) -> str:
    """Return a fraction as percent without the sign: 12.3."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a difference of fractions in points: +1.2, −0.4."""
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def between(low: float, high: float) -> str:
    """Return an interval of fractions: 10.2 to 14.0."""
    return f"{percent(low)} to {percent(high)}".replace("-", "−")


def plus_minus(deviation: float | None) -> str:
    """Return a standard deviation over seeds, or nothing for one seed."""
    return "" if deviation is None else f"± {percent(deviation)}"


def direction_name(direction: str) -> str:
    """Return how a direction is called."""
    if direction in ARROWS:
        return ARROWS[direction]
    return f"zero-shot {direction.removeprefix(ZERO_SHOT).removeprefix(':')}".strip()


def measure_name(measure: Measure) -> str:
    """Return the heading of a measure's column."""
    name = direction_name(measure.direction)
    if measure.direction in ARROWS:
        return f"{name} R@{measure.k}"
    return f"{name} {'per-class' if measure.macro else f'acc@{measure.k}'}"
