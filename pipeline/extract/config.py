"""Settings of the extract stage: each field is an option of `pipeline extract` and a setting of params.yaml.

`extract_config` and `named_stores` say what params.yaml means: every data set that it names, with both encoders.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config import build, name, names, section
from pipeline.errors import UnknownNameError, UserError
from pipeline.runtime import DTYPE_NAMES, cpu_cores, resolve_device
from pipeline.settings import at_least, between, more_than, one_of, setting, settings
from pipeline.storage.contract import Place
from pipeline.storage.leases import LEASE_SECONDS

TURNED = "stored turned or mirrored"
"""How the reason begins for which `--exif reject` leaves a photograph out; by it a store's table of them is read."""
_ON_A_CPU = {"image": 16, "text": 32}
"""Rows a pass: more are no faster on a CPU (see `runtime.keep_freed_memory`), and their activations take memory."""
SHARD_BYTES = 128 * 2**20
"""What a shard's layers sum up to, about."""
_LEAST_ROWS, _MOST_ROWS, _LEAST_SHARDS = {"image": 32, "text": 256}, 65536, 8
_FINE_ROWS = {"image": 32, "text": 4096}
"""Rows that no shard is cut finer than for the sake of a kill: two passes of photographs, seconds of texts."""


@settings
class ExtractConfig:
    """One data set through one encoder.

    A setting that changes bytes is part of the store's key and of the receipt. A data set counts by the digest of its
    content, not by where it lies; which layers and which texts are stored changes no byte of any of them.
    """

    dataset: Place = setting(changes_bytes=False, help="Data set folder, data/0_raw/<name>.")
    encoder: str = setting(
        changes_bytes=True,
        help="timm:NAME, open_clip:NAME/PRETRAINED, hf:ORG/NAME@REV, st:ORG/NAME (each also with a local path), "
        "package:NAME, or module:Class. It reads images or texts, whichever it takes.",
    )
    out: Place = setting(changes_bytes=False, help="Feature store, data/1_features/<data set>/<encoder>.")
    layers: str = setting(default="all", changes_bytes=False, help="all, last, 0,5,-1, 4:12, or module names.")
    pool: str = setting(
        default="auto",
        changes_bytes=True,
        help="How tokens become one vector: auto, cls, mean, eos, patch_mean or cls+patch_mean.",
    )
    modality: Literal["image", "text"] | None = setting(
        default=None, changes_bytes=True, help="image or text: which tower of a model that has both."
    )
    texts: str = setting(
        default="all",
        check=one_of(("all", "captions", "classes"), "kind of texts"),
        changes_bytes=False,
        help="What a text encoder reads: captions, classes (the class prompts, into OUT/classes), or all.",
    )
    prompt: str = setting(default="", changes_bytes=True, help="Text to put before every text.")
    max_length: int | None = setting(
        default=None,
        check=at_least(1),
        changes_bytes=True,
        help="Longest text in tokens. [default: the encoder's own limit]",
    )
    dtype: str = setting(
        default="fp32",
        check=one_of(DTYPE_NAMES, "dtype"),
        changes_bytes=True,
        help="Arithmetic of the forward pass: fp32, fp16 or bf16.",
    )
    storage_dtype: str | None = setting(
        default=None,
        check=one_of(DTYPE_NAMES, "storage dtype"),
        changes_bytes=True,
        help="Number format on the disk: fp32, fp16 or bf16. [default: that of --dtype]",
    )
    jpeg: str = setting(
        default="exact",
        check=one_of(("exact", "reduced"), "way to decode JPEGs"),
        changes_bytes=True,
        help="exact, or reduced: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, 2 to 6 times as fast.",
    )
    exif: str = setting(
        default="apply",
        check=one_of(("apply", "reject"), "treatment of EXIF orientations"),
        changes_bytes=True,
        help="Photographs stored turned or mirrored: apply their EXIF orientation, or reject them.",
    )
    device: str = setting(default="auto", changes_bytes=False, help="auto, cpu, cuda or cuda:1.")
    batch_size: int | None = setting(
        default=None,
        check=at_least(1),
        changes_bytes=False,
        help="Rows in a forward pass, halved when GPU memory runs out. "
        "[default: 256 on a GPU, 16 images or 32 texts on a CPU]",
    )
    workers: int | None = setting(
        default=None,
        check=at_least(1),
        changes_bytes=False,
        help="Threads that decode and tokenise. [default: one per core, at most 32]",
    )
    decode_cpus: int | None = setting(
        default=None,
        check=at_least(0),
        changes_bytes=False,
        help="CPUs of a cluster that only decode images. [default: on nodes without a GPU, where encoders use GPUs]",
    )
    shard_rows: int | None = setting(
        default=None,
        check=at_least(1),
        changes_bytes=False,
        help="Items in a shard. [default: about 128 MB of features, less for small data sets]",
    )
    format: str = setting(default="hdf5", changes_bytes=False, help="File format of the shards: hdf5 or parquet.")
    worker_index: int = setting(
        default=0, changes_bytes=False, help="Which of several workers on one store this is, counted from 0."
    )
    num_workers: int = setting(
        default=1,
        check=at_least(1),
        changes_bytes=False,
        help="How many workers there are; srun, torchrun and SLURM arrays say so themselves.",
    )
    lease_seconds: float = setting(
        default=LEASE_SECONDS,
        check=more_than(0),
        changes_bytes=False,
        help="Seconds of silence after which a worker on another machine counts as dead and loses its shards.",
    )
    max_rejected: float = setting(
        default=0.05,
        check=between(0, 1),
        changes_bytes=False,
        help="Share of broken items above which the run stops.",
    )
    replace: bool = setting(
        default=False, changes_bytes=False, flag="--replace", help="Replace a store of another key at --out."
    )
    dry_run: bool = setting(
        default=False, changes_bytes=False, flag="--dry-run", help="Print the cost and stop before any work."
    )

    def problems(self) -> Iterator[UserError]:
        """Yield what is wrong between settings."""
        if not 0 <= self.worker_index < self.num_workers:
            expected = f"0 to {self.num_workers - 1}, as --num-workers says"
            yield UserError(expected=expected, found=str(self.worker_index), where="--worker-index")

    @property
    def storage(self) -> str:
        """The number format on the disk as the feature store names it."""
        return DTYPE_NAMES[self.storage_dtype or self.dtype]

    @property
    def threads(self) -> int:
        """Threads that decode and tokenise."""
        return self.workers or min(32, cpu_cores())

    def rows_a_pass(self, modality: str) -> int:
        """Return the rows of a forward pass."""
        if self.batch_size:
            return self.batch_size
        return 256 if resolve_device(self.device).type == "cuda" else _ON_A_CPU[modality]


def default_shard_rows(items: int, widths: Sequence[int], storage: str, modality: str) -> int:
    """Return a power of two: about `SHARD_BYTES` a shard, yet at least eight shards where they hold enough items.

    Small data sets are cut finer than the bytes ask for, because a shard is what a killed run loses at most: of 200
    photographs an interrupted run keeps all but the last 32. Texts are not cut below 4096: they are sorted by length
    inside a shard, and 256 of them give batches with 6 % more tokens, all of them padding; 4096 with less than 1 %.
    """
    by_bytes = max(256, SHARD_BYTES // max(1, sum(widths) * (4 if storage == "float32" else 2)))
    wanted = min(by_bytes, max(_FINE_ROWS[modality], items // _LEAST_SHARDS), _MOST_ROWS)
    return max(_LEAST_ROWS[modality], 1 << (max(wanted, 1).bit_length() - 1))


def extract_config(
    params: Mapping[str, Any],
    dataset: str,
    encoder: str,
    root: Path = Path(),
    *,
    where: str = "params.yaml",
    **flags: Any,
) -> ExtractConfig:
    """Return the settings that params.yaml means for one data set and one encoder.

    Args:
        params: The whole of params.yaml.
        dataset: A data set's name: a folder of `data/0_raw`.
        encoder: An encoder's short name, a key of the section `encoders`.
        root: The checkout; all folders are below its `data/`.
        where: The file that they came from, for errors.
        flags: Fields of `ExtractConfig` that win over the section `extract`; None means nothing was said.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
        UnknownNameError: `encoders` does not name the encoder.
    """
    encoders = section(params, "encoders", where)
    if encoder not in encoders:
        raise UnknownNameError("encoder", encoder, encoders, f"{where}: encoders")
    spec = encoders[encoder]
    own = dict(spec) if isinstance(spec, Mapping) else {"encoder": spec}
    values = {
        **section(params, "extract", where),
        **own,
        **{flag: value for flag, value in flags.items() if value is not None},
        "dataset": root / "data" / "0_raw" / dataset,
        "out": root / "data" / "1_features" / dataset / encoder,
    }
    return build(ExtractConfig, values, where=f"{where}: extract, {encoder}")


def named_stores(params: Mapping[str, Any], where: str = "params.yaml") -> list[tuple[str, str]]:
    """Return every (data set, encoder) that params.yaml names: all data sets with both encoders.

    Raises:
        UserError: A name is missing or is no name.
    """
    encoders = [name(params, side, where=where) for side in ("image_encoder", "text_encoder")]
    return [(dataset, encoder) for dataset in names(params, "datasets", where=where) for encoder in encoders]
