"""Settings of `pipeline index`, `search` and `serve`; nothing heavy is loaded."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.indexes import KINDS, MEMORY
from pipeline.settings import at_least, between, one_of, setting, settings
from pipeline.storage.contract import Place

RUN = "Folder of a run, data/2_projectors/<name>, or of an export."
IMAGE_STORE = "Image store. [default: the one of the training]"
TEXT_STORE = "Store of the captions. [default: the one of the training]"
DEVICE = "cpu, cuda or auto."
SEED = "Which of the run's seeds. [default: the first]"
SPLIT = "Only images of this split. [default: all]"
TRUST = "Module with encoders of your own that the run may name: its code runs."


@settings
class IndexConfig:
    """What is built; of several processes every one says the same."""

    run: Place = setting(argument=True, help=RUN)
    out: Path = setting(help="Folder to write: new, empty, or an older index.")
    image: tuple[Place, ...] = setting(default=(), flag="--store", help=IMAGE_STORE)
    text: tuple[Place, ...] = setting(default=(), flag="--text-store", help=TEXT_STORE.replace("captions", "queries"))
    kind: str = setting(
        default="auto",
        check=one_of(KINDS, "index"),
        help="auto (by size; ivf in parts, whose lists need not fit the memory), flat, ivf, hnsw, sq8 or ivfpq.",
    )
    recall: float = setting(default=0.95, help="Wanted recall@k against exact search.")
    k: int = setting(default=10, check=at_least(1), help="Neighbours that are compared.")
    memory: int = setting(
        default=MEMORY, flag=None, help="Bytes that vectors and codes, or those of a part, may take while it is built."
    )
    parts: int | None = setting(
        default=None,
        help="Build in this many parts that survive a kill, lists on the disk; fewer where the store has fewer shards.",
    )
    split: str | None = setting(default=None, help=SPLIT)
    seed: int | None = setting(default=None, help=SEED)

    @property
    def folder(self) -> Path:
        """Folder of what is made on the way, where it is built in parts."""
        return self.out.with_name(f"{self.out.name}.parts")

    def problems(self) -> Iterator[UserError]:
        """Yield what makes no sense."""
        if self.kind == "torch":
            expected, remedy = "a kind that can be stored", "take --kind flat"
            yield UserError(expected=expected, found="torch", where="--kind", remedy=remedy)
        if not 0 < self.recall <= 1:
            yield UserError(expected="a recall above 0 and at most 1", found=str(self.recall), where="--recall")
        if self.memory < 2**20:
            yield UserError(expected="a megabyte of memory at least", found=f"{self.memory} bytes", where="--memory")


@settings
class SearchConfig:
    """Where to search."""

    run: Place = setting(argument=True, help=RUN)
    store: tuple[Place, ...] = setting(default=(), help=IMAGE_STORE)
    text_store: tuple[Place, ...] = setting(default=(), help=TEXT_STORE)
    seed: int | None = setting(default=None, help=SEED)
    split: str | None = setting(default=None, help=SPLIT)
    index: Path | None = setting(
        default=None, help="Folder of pipeline index. [default: none, images are indexed for this search]"
    )
    device: str = setting(default="cpu", help=DEVICE)
    trust_module: tuple[str, ...] = setting(default=(), help=TRUST)


@settings
class ServeConfig:
    """What is served, and where."""

    runs: tuple[Place, ...] = setting(
        argument=True, help="Folders of runs, data/2_projectors/<name>; the first is shown."
    )
    port: int = setting(default=8000, check=between(0, 65535), help="Port; 0 takes any that is free.")
    host: str = setting(default="127.0.0.1", help="Address to listen on; only this machine reaches the default.")
    allow_host: tuple[str, ...] = setting(
        default=(), help="Name that the server is reached by, beside localhost and IP addresses."
    )
    store: tuple[Place, ...] = setting(default=(), help=IMAGE_STORE)
    text_store: tuple[Place, ...] = setting(default=(), help=TEXT_STORE)
    data: Place | None = setting(
        default=None, help="Folder of the pictures. [default: the one that the store was made from]"
    )
    device: str = setting(default="cpu", help=DEVICE)
    trust_module: tuple[str, ...] = setting(default=(), help=TRUST)
