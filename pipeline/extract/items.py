"""What one store is made of: the items of a data set in order, their samples, their digest, how to load each.

Three kinds: images of images.csv, captions of captions.csv, prompts of classes.json. The digest covers ids and contents
in order; splits, labels and which image a caption belongs to are metadata and do not change it.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Union

from pipeline.encoders.base import Encoder, Modality
from pipeline.errors import RejectedInputError, UserError
from pipeline.extract.datasets.layout import Classes, RawDataset
from pipeline.extract.datasets.tables import is_utf8
from pipeline.files import file_sha256
from pipeline.storage.contract import Storage
from pipeline.storage.open import open_storage
from pipeline.store.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from pipeline.extract.decode import Reduction

Content = Union["Image", str]

_START = 16
"""Bytes of a file's sha256 that are kept to know it again: enough, and little for millions of files."""


@dataclass(frozen=True, kw_only=True)
class Item(ABC):
    """Where one item comes from; small, and it can be sent to another process or machine that sees the same files."""

    position: int
    """Which item of the data set."""

    @abstractmethod
    def load(self, reduction: "Reduction") -> Content:
        """Return the RGB image or the text; runs in several threads at once.

        Args:
            reduction: How much smaller the encoder takes JPEGs.

        Raises:
            RejectedInputError: The item cannot be used.
            UserError: The item is no longer the one that was digested.
        """


@dataclass(frozen=True, kw_only=True)
class ImageItem(Item):
    """An image file of a data set."""

    root: str
    """The data set's folder, or its URL."""
    file: str
    """Path inside it."""
    start: bytes
    """How the sha256 of its bytes began when it was digested."""
    reduced: bool
    """Whether a large JPEG is decoded smaller."""
    turned: bool
    """Whether it is turned upright as EXIF says."""

    def load(self, reduction: "Reduction") -> Content:
        """Return the image."""
        from pipeline.extract.decode import decode_bytes, read_file

        root = open_storage(self.root)
        path = root.here / self.file
        try:
            data = read_file(path if path.exists() else root.file(self.file))  # what is here is compared below
        except (RejectedInputError, FileNotFoundError):
            if self.start == _start(b""):
                raise RejectedInputError("the file cannot be read: No such file or directory") from None
            raise self._changed("a file that cannot be read") from None
        if _start(hashlib.sha256(data).digest()) != self.start:
            raise self._changed("other bytes")
        return decode_bytes(data, reduction if self.reduced else None, turn=self.turned)

    def _changed(self, found: str) -> UserError:
        return UserError(
            expected=f"{self.file} as it was when this run began",
            found=found,
            where=self.root,
            remedy="run again when nobody writes to the data set",
        )


@dataclass(frozen=True, kw_only=True)
class TextItem(Item):
    """A caption or a prompt."""

    text: str

    def load(self, reduction: "Reduction") -> Content:
        """Return the text."""
        if not is_utf8(self.text):
            raise RejectedInputError("the caption is not UTF-8")
        if not self.text.strip():
            raise RejectedInputError("the caption is empty")
        return self.text


@dataclass(frozen=True, kw_only=True)
class Items:
    """N items of one modality."""

    what: str
    """`images`, `captions` or `class prompts`, for messages."""
    samples: Samples
    """Their metadata, in order."""
    digest: str
    """sha256 over (id, sha256 of the content) of each item in order."""
    at: Callable[[int], Item]
    """Position → where that item comes from."""
    table: str = ""
    """Address of the file that the items come from, for messages."""

    def __len__(self) -> int:
        return len(self.samples)

    def require_sound(self, rejected: Sequence[tuple[str, str]], limit: float, table: str) -> None:
        """Stop where more than the allowed share of the items is broken.

        Args:
            rejected: (id, reason) of those found so far.
            limit: Share that is allowed.
            table: Address of the rejected.csv that the message points at.

        Raises:
            UserError: Too many.
        """
        if len(rejected) <= math.floor(limit * len(self) + 1e-6):  # 0.29 of 100 is a little less than 29
            return
        first, reason = rejected[0]
        raise UserError(
            expected=f"at most {limit:.1%} broken {self.what}",
            found=f"{len(rejected)} of {len(self)}, the first {first!r}: {reason}",
            where=table,
            remedy="that table lists those found so far: mend them, or allow more with --max-rejected",
        )


def image_items(dataset: RawDataset, workers: int, *, jpeg: str = "exact", exif: str = "reject") -> Items:
    """Return the images of a data set; reads every file once for the digest, and once more when it is loaded.

    Args:
        dataset: The data set.
        workers: Threads that read.
        jpeg: `exact` or `reduced`.
        exif: `reject` or `apply`.
    """
    files = [row.file for row in dataset.images]
    root = dataset.root
    ids = [row.image_id for row in dataset.images]
    seen = bytearray()
    with ThreadPoolExecutor(workers) as pool:
        digest = _digest(ids, _noted(pool.map(lambda file: _file_sha256(root, file), files, chunksize=64), seen))

    def at(position: int) -> Item:
        return ImageItem(
            position=position,
            root=str(root),
            file=files[position],
            start=bytes(seen[position * _START : (position + 1) * _START]),
            reduced=jpeg == "reduced",
            turned=exif == "apply",
        )

    samples = Samples(ids, ids, [row.split for row in dataset.images], [row.label for row in dataset.images], files)
    return Items(what="images", samples=samples, digest=digest, at=at, table=str(root / "images.csv"))


def caption_items(dataset: RawDataset) -> Items:
    """Return the captions of a data set; split and label are those of their image."""
    rows = dataset.captions
    known = {row.image_id: row for row in dataset.images}
    images = [known.get(row.image_id) for row in rows]
    texts = [row.caption for row in rows]
    samples = Samples(
        [row.caption_id for row in rows],
        [row.image_id for row in rows],
        [image.split if image else "" for image in images],
        [image.label if image else "" for image in images],
        [_shown(text) for text in texts],
    )
    return _texts("captions", samples, texts, str(dataset.root / "captions.csv"))


def prompt_items(dataset: RawDataset, classes: Classes) -> Items:
    """Return the prompts of a data set's classes: `<class>#<t>`, T a class, labelled with their class."""
    prompts = [(name, number, text) for name in classes.names for number, text in enumerate(classes.sentences(name))]
    empty = [""] * len(prompts)
    texts = [text for _, _, text in prompts]
    ids = [f"{name}#{number}" for name, number, _ in prompts]
    samples = Samples(ids, empty, empty, [name for name, _, _ in prompts], texts)
    return _texts("class prompts", samples, texts, str(dataset.root / "classes.json"))


def _texts(what: str, samples: Samples, texts: list[str], table: str) -> Items:
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in texts)
    digest = _digest(samples.sample_id, digests)

    def at(position: int) -> Item:
        return TextItem(position=position, text=texts[position])

    return Items(what=what, samples=samples, digest=digest, at=at, table=table)


def _shown(text: str) -> str:
    return text if is_utf8(text) else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _file_sha256(root: Storage, name: str) -> bytes:
    try:
        return bytes.fromhex(file_sha256(root.file(name)))
    except OSError:
        return b""  # a missing file is rejected when it is decoded; when it turns up, the digest changes


def _noted(digests: Iterable[bytes], seen: bytearray) -> Iterator[bytes]:
    """Yield the digests and note how each begins."""
    for digest in digests:
        seen += _start(digest)
        yield digest


def _start(digest: bytes) -> bytes:
    return digest[:_START].ljust(_START, b"\0")


def _digest(ids: Iterable[str], contents: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for item_id, content in zip(ids, contents, strict=True):
        name = item_id.encode()
        total.update(len(name).to_bytes(8, "little") + name + len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


# ---- made ready for the encoder --------------------------------------------------------------------------------------

TEXTS_AT_ONCE = 32
"""Texts a thread tokenises in one go."""


@dataclass(frozen=True)
class Prepared:
    """An item that is ready for the encoder, or the reason why it never will be."""

    position: int
    """Which item of the data set."""
    tensor: Optional["Tensor"] = None
    """[3, H, W] or [T]; None if rejected."""
    reason: str = ""
    """Why it was rejected."""


def prepare(encoder: Encoder, item: Item) -> Prepared:
    """Load and prepare one item.

    Raises:
        UserError: The item is not the one that was digested.
    """
    position = item.position
    try:
        sample = item.load(encoder.reduction)
    except RejectedInputError as error:
        return Prepared(position, reason=str(error))
    try:
        return Prepared(position, encoder.prepare(sample))
    except UserError as error:
        return Prepared(position, reason=f"the encoder refuses it: {error.sentence()}")


class Preparing(ABC):
    """Where items are made ready: threads of this process, or with an engine also other machines."""

    @abstractmethod
    def threads(self, modality: Modality) -> int:
        """Return how many threads may call at once."""

    @abstractmethod
    def at_once(self, modality: Modality) -> int:
        """Return how many items a call had best be given."""

    @abstractmethod
    def __call__(self, encoder: Encoder, items: Sequence[Item]) -> list[Prepared]:
        """Make some items ready, in their order.

        Raises:
            UserError: An item is not the one that was digested.
        """


class Here(Preparing):
    """Makes items ready in the thread that asks.

    Args:
        workers: Threads that may ask.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def threads(self, modality: Modality) -> int:
        """Return the number of workers."""
        return self._workers

    def at_once(self, modality: Modality) -> int:
        """Return one image, or some texts: handing over a single one costs more than tokenising it."""
        return TEXTS_AT_ONCE if modality == "text" else 1

    def __call__(self, encoder: Encoder, items: Sequence[Item]) -> list[Prepared]:
        """Make them ready."""
        return [prepare(encoder, item) for item in items]
