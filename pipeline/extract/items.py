"""What a store is made of: the items of a data set in order, their samples, digest and key, and how to load each.

Three kinds: images of images.csv, captions of captions.csv, prompts of classes.json. The digest covers ids and contents
in order; splits, labels and which image a caption belongs to are metadata and do not change it.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Optional

from pipeline.encoders.base import Encoder, Modality
from pipeline.errors import PipelineError, RejectedInputError, UserError, lacking
from pipeline.extract.config import TURNED, ExtractConfig
from pipeline.extract.datasets.classes import Classes
from pipeline.extract.datasets.layout import RawDataset, is_utf8
from pipeline.heif import START, is_heif, register
from pipeline.runtime import DTYPE_NAMES
from pipeline.storage.contract import Storage
from pipeline.storage.local import open_storage
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import CLASSES, MANIFEST, read_manifest
from pipeline.store.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from pipeline.extract.decode import Reduction

_START = 16
"""Bytes of a file's sha256 that are kept to know it again: enough, and little for millions of files."""


@dataclass(frozen=True, kw_only=True)
class ImageItem:
    """An image file; small, and it can be sent to another process or machine that sees the same files."""

    position: int
    """Which item of the data set."""
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

    def load(self, reduction: "Reduction") -> "Image":
        """Return the RGB image; runs in several threads at once.

        Args:
            reduction: How much smaller the encoder takes JPEGs.

        Raises:
            RejectedInputError: It cannot be used.
            UserError: It is no longer the one that was digested.
        """
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
class TextItem:
    """A caption or a prompt."""

    position: int
    """Which item of the data set."""
    text: str
    """The text; surrogates where the table was not UTF-8."""

    def load(self, reduction: "Reduction") -> str:
        """Return the text, or raise RejectedInputError; nothing is reduced."""
        if not is_utf8(self.text):
            raise RejectedInputError("the caption is not UTF-8")
        if not self.text.strip():
            raise RejectedInputError("the caption is empty")
        return self.text


Item = ImageItem | TextItem


@dataclass(frozen=True)
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
    heif: bool = False
    """Whether some are HEIF pictures, which not every machine can read."""

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


class Job(NamedTuple):
    """One store to make, and what of."""

    root: Storage
    items: Items


def jobs_of(config: ExtractConfig, dataset: RawDataset, modality: str) -> Iterator[Job]:
    """Yield the stores that an encoder of this modality makes of a data set.

    Raises:
        UserError: The data set has nothing for it to read.
    """
    out = open_storage(config.out)
    if modality == "image":
        if not dataset.images:
            raise UserError(expected="images", found="none in images.csv", where=str(dataset.root))
        yield Job(out, image_items(dataset, config.threads, jpeg=config.jpeg, exif=config.exif))
        return
    captions = bool(dataset.captions) and config.texts != "classes"
    classes = dataset.classes if config.texts != "captions" else None
    if not captions and not classes:
        wanted = {"all": "captions or classes", "captions": "captions", "classes": "classes.json"}[config.texts]
        raise UserError(expected=wanted, found="none", where=str(dataset.root), remedy="a text encoder needs texts")
    if captions:
        yield Job(out, caption_items(dataset))
    if classes:
        yield Job(out / CLASSES, prompt_items(dataset, classes))


def image_items(dataset: RawDataset, workers: int, *, jpeg: str = "exact", exif: str = "apply") -> Items:
    """Return the images of a data set; reads every file once for the digest, and once more when it is loaded.

    Args:
        dataset: The data set.
        workers: Threads that read.
        jpeg: `exact` or `reduced`.
        exif: `apply` or `reject`.
    """
    root = dataset.root
    ids, files, splits, labels = (list(column) for column in zip(*dataset.images, strict=True))
    with ThreadPoolExecutor(workers) as pool:
        read = list(pool.map(lambda file: _digested(root, file), files, chunksize=64))
    digests = [digest for digest, _ in read]
    starts = b"".join(map(_start, digests))

    def at(position: int) -> Item:
        return ImageItem(
            position=position,
            root=str(root),
            file=files[position],
            start=starts[position * _START : (position + 1) * _START],
            reduced=jpeg == "reduced",
            turned=exif == "apply",
        )

    samples = Samples(ids, ids, splits, labels, files)
    return Items("images", samples, _digest(ids, digests), at, heif=any(heif for _, heif in read))


def caption_items(dataset: RawDataset) -> Items:
    """Return the captions of a data set; split and label are those of their image."""
    ids, image_ids, texts = (list(column) for column in zip(*dataset.captions, strict=True))
    known = {row.image_id: (row.split, row.label) for row in dataset.images}
    images = [known.get(image_id, ("", "")) for image_id in image_ids]
    shown = [text if is_utf8(text) else _bytes(text).decode("utf-8", "replace") for text in texts]
    samples = Samples(ids, image_ids, [split for split, _ in images], [label for _, label in images], shown)
    return _texts("captions", samples, texts)


def prompt_items(dataset: RawDataset, classes: Classes) -> Items:
    """Return the prompts of a data set's classes: `<class>#<t>`, T a class, labelled with their class."""
    prompts = [(name, number, text) for name in classes.names for number, text in enumerate(classes.sentences(name))]
    empty = [""] * len(prompts)
    texts = [text for _, _, text in prompts]
    ids = [f"{name}#{number}" for name, number, _ in prompts]
    samples = Samples(ids, empty, empty, [name for name, _, _ in prompts], texts)
    return _texts("class prompts", samples, texts)


def _texts(what: str, samples: Samples, texts: list[str]) -> Items:
    digest = _digest(samples.sample_id, (hashlib.sha256(_bytes(text)).digest() for text in texts))
    return Items(what, samples, digest, lambda position: TextItem(position=position, text=texts[position]))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _digested(root: Storage, name: str) -> tuple[bytes, bool]:
    """Return the sha256 of a picture's file, and whether it is HEIF."""
    try:
        with root.file(name).open("rb") as file:
            heif = is_heif(file.read(START))
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest(), heif
    except OSError as error:
        if lacking(error):
            raise
        return b"", False  # a missing file is rejected when it is decoded; when it turns up, the digest changes


def _start(digest: bytes) -> bytes:
    return digest[:_START].ljust(_START, b"\0")


def _digest(ids: Iterable[str], contents: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for item_id, content in zip(ids, contents, strict=True):
        name = item_id.encode()
        total.update(len(name).to_bytes(8, "little") + name + len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def feature_key(config: ExtractConfig, items: Items, encoder: Encoder) -> FeatureKey:
    """Return the key of the features: everything that changes their bytes."""
    from pipeline.encoders.load import own_source

    made = encoder.key()
    preprocessing = dict(made.preprocessing)
    if encoder.modality == "image":
        from pipeline.extract.decode import DECODE_VERSION, JPEG_RULES

        preprocessing["decode"] = {
            "version": DECODE_VERSION,
            "library": "pillow",
            "transparency": "white",
            "jpeg": JPEG_RULES[config.jpeg],
            # Where these are not said, such pictures are refused.
            **({"exif": "turned upright"} if config.exif == "apply" else {}),
            **({"heif": "pillow-heif"} if items.heif and register() else {}),
        }
    return FeatureKey(
        modality=encoder.modality,
        dataset_digest=items.digest,
        encoder={**made.encoder, **own_source(encoder)},
        preprocessing=preprocessing,
        pooling=made.pooling,
        compute_dtype=DTYPE_NAMES[config.dtype],
        storage_dtype=config.storage,
    )


def with_its_rule(config: ExtractConfig, job: Job) -> ExtractConfig:
    """Return the settings, with the rule of a finished store where turning photographs would change none of its bytes.

    That is a store of the same pictures that refused turned photographs (`--exif reject`, the default of earlier
    versions) and met none: its table of what was left out names them all. An unfinished store has no such table.
    """
    if config.exif != "apply" or job.root.stat(MANIFEST) is None:
        return config
    try:
        manifest = read_manifest(job.root)
    except PipelineError:
        return config
    key = manifest.header.key
    refused = "exif" not in (key.preprocessing.get("decode") or {"exif": "not known"})
    met = any(reason.startswith(TURNED) for shard in manifest.shards for _, reason in shard.rejected)
    same = key.dataset_digest == job.items.digest
    return replace(config, exif="reject") if refused and same and not met else config


def require_key(config: ExtractConfig, key: FeatureKey, existing: FeatureKey, where: str) -> None:
    """Check that a store of another key is not taken for this one.

    Raises:
        KeyMismatchError: Names each field that differs.
    """
    remedy = "extract to another --out, or start over with --replace"
    if [field for field, *_ in key.differences(existing)] == ["preprocessing.decode.exif"]:
        remedy = f"say --exif {'reject' if config.exif == 'apply' else 'apply'}, as that store was made, {remedy}"
    key.require(existing, where, remedy)


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


class Preparing:
    """Makes items ready in threads of this process; an engine's own does it on other machines too.

    Args:
        workers: Threads that may call at once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def threads(self, modality: Modality) -> int:
        """Return how many threads may call at once."""
        return self._workers

    def at_once(self, modality: Modality) -> int:
        """Return how many items a call had best be given: handing over a text costs more than tokenising it."""
        return TEXTS_AT_ONCE if modality == "text" else 1

    def __call__(self, encoder: Encoder, items: Sequence[Item]) -> list[Prepared]:
        """Make some items ready, in their order.

        Raises:
            UserError: An item is not the one that was digested.
        """
        return [prepare(encoder, item) for item in items]


def prepare(encoder: Encoder, item: Item) -> Prepared:
    """Load and prepare one item.

    Raises:
        UserError: The item is not the one that was digested.
    """
    try:
        sample = item.load(encoder.reduction)
    except RejectedInputError as error:
        return Prepared(item.position, reason=str(error))
    try:
        return Prepared(item.position, encoder.prepare(sample))
    except UserError as error:
        return Prepared(item.position, reason=f"the encoder refuses it: {error.sentence()}")
