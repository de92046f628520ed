"""Settings of the extract stage; every field is a flag of `pipeline extract`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import UnknownNameError, UserError
from pipeline.remote.heartbeat import LEASE_SECONDS
from pipeline.runtime import DTYPE_NAMES

Dtype = Literal["fp32", "fp16", "bf16"]
"""Number formats as flags say them and as the feature store names them."""
TEXTS = ("all", "captions", "classes")
JPEG = ("exact", "reduced")
EXIF = ("reject", "apply")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """One data set through one encoder."""

    dataset: Path
    """Folder of the raw data set, `data/0_raw/<name>`."""
    encoder: str
    """Encoder spec, such as `package:efficientnet-lite0`; what it takes says whether images or texts are read."""
    out: Path
    """The feature store, `data/1_features/<dataset>/<encoder>`."""
    modality: Literal["image", "text"] | None = None
    """Which tower of a two-tower model; nothing where the encoder has one."""
    layers: str = "all"
    """`all`, `last`, indices, ranges or names (see `pipeline.layers`)."""
    pool: str = "auto"
    """How tokens become one vector."""
    dtype: str = "fp32"
    """Arithmetic of the forward pass: fp32, fp16 or bf16."""
    storage_dtype: str | None = None
    """Number format on the disk; nothing means the same as `dtype`."""
    max_length: int | None = None
    """Longest text in tokens; nothing means the encoder's own limit."""
    prompt: str = ""
    """Put before every text."""
    texts: str = "all"
    """What a text encoder reads: captions, class prompts (into `<out>/classes`), or all that is there."""
    jpeg: str = "exact"
    """`exact`, or `reduced`: decode large JPEGs at 1/2, 1/4 or 1/8 (see `pipeline.extract.decode`)."""
    exif: str = "reject"
    """Images stored turned or mirrored: `reject` them, or `apply` their EXIF orientation and turn them upright."""
    device: str = "auto"
    """`auto`, cpu, cuda, cuda:1, ..."""
    batch_size: int | None = None
    """Rows a forward pass; nothing means 256 on a GPU, 16 images or 32 texts on a CPU. Halved when memory runs out."""
    workers: int | None = None
    """Threads that decode and tokenise; nothing means one a core, 32 at most."""
    decode_cpus: int | None = None
    """CPUs of a cluster that only decode images; nothing means, where encoders have GPUs, those of the nodes without
    one, else none. Without a cluster it means nothing."""
    shard_rows: int | None = None
    """Items in a shard; nothing means about 128 MB, yet eight shards where they hold 256 images or 4096 texts."""
    format: str = "hdf5"
    """Shard files: hdf5 or parquet."""
    worker_index: int = 0
    """Which of several workers on this store this is: what it begins with, never what the store holds."""
    num_workers: int = 1
    """How many workers there are; any of them finish the store, and one that dies may be started again."""
    lease_seconds: float = LEASE_SECONDS
    """A worker of another machine that shows no sign of life for so long is dead: what it held is taken over."""
    max_rejected: float = 0.05
    """Share of the items that may be broken before the run stops."""
    replace: bool = False
    """Throw away a store of another key at `out`."""
    dry_run: bool = False
    """Say what it would cost and stop."""

    def __post_init__(self) -> None:
        tables = {"dtype": DTYPE_NAMES, "storage_dtype": DTYPE_NAMES, "texts": TEXTS, "jpeg": JPEG, "exif": EXIF}
        for name, known in tables.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UnknownNameError(name, value, known, f"--{name.replace('_', '-')}")
        for name in ("batch_size", "workers", "shard_rows", "max_length", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(expected="1 or more", found=str(value), where=f"--{name.replace('_', '-')}")
        if self.decode_cpus is not None and self.decode_cpus < 0:
            raise UserError(expected="0 or more", found=str(self.decode_cpus), where="--decode-cpus")
        if not 0 < self.lease_seconds < math.inf:
            raise UserError(expected="more than 0 seconds", found=str(self.lease_seconds), where="--lease-seconds")
        if not 0 <= self.worker_index < self.num_workers:
            expected = f"0 to {self.num_workers - 1}, as --num-workers says"
            raise UserError(expected=expected, found=str(self.worker_index), where="--worker-index")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(expected="a share of 0 to 1", found=str(self.max_rejected), where="--max-rejected")

    @property
    def storage(self) -> str:
        """Return the number format on the disk as the feature store names it."""
        return DTYPE_NAMES[self.storage_dtype or self.dtype]
