"""Real extractions in forked processes: `python -m tests.extract.beside MODE RAW OUT FORMAT NUMBER`; prints JSON lines.

beside: NUMBER runs at once on one store. room: a run whose files may not grow past a limit from its third shard on.
One process imports everything, and forks before any thread is started.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.extract import compute
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.store.writer import StoreWriter
from tests.extract.tiny_encoders import TinyImage

IMAGE = "tests.extract.beside:Filling"


class Filling(TinyImage):
    """Fills the disk, so to say, after `FULL_AFTER` rows; can wait for others or stop before it encodes some."""

    rows = 0
    before: ClassVar[dict[int, Callable[[], None]]] = {}
    """Rows that are encoded → what is done then, before the next."""

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        self.before.get(self.rows, lambda: None)()
        type(self).rows += len(prepared)
        if self.rows > int(os.environ.get("FULL_AFTER", "1000000")):
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        return super().encode(prepared, layers)


def meet(place: Path, number: int) -> None:
    """Wait until so many processes are here: each has claimed a shard or two, and committed none."""
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    end = time.monotonic() + 300
    while len(list(place.iterdir())) < number:
        if time.monotonic() > end:
            raise TimeoutError(f"{number} processes at {place}")
        time.sleep(0.005)


def in_child(work: Callable[[], dict[str, Any]]) -> int:
    """Fork a child that prints a JSON line of what it did; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    compute.require_same_twice = lambda *_: None  # rows are counted here, each once
    try:
        line = json.dumps(work()) + "\n"
        os.write(sys.stdout.fileno(), line.encode())
        code = 0
    finally:
        os._exit(code)


def run(config: ExtractConfig) -> dict[str, Any]:
    """Extract; say what was computed and committed, or the error."""
    committed: list[int] = []
    commit = StoreWriter.commit

    def counted(self: StoreWriter, shard: Any, *rest: Any) -> None:
        commit(self, shard, *rest)
        committed.append(shard.index)

    StoreWriter.commit = counted  # type: ignore[method-assign, assignment]
    try:
        result = extract(config)
    except PipelineError as error:
        left = sorted(path.name for path in Path(str(config.out)).iterdir() if path.name != ".events")
        return {"error": error.sentence(), "code": error.exit_code, "committed": sorted(committed), "left": left}
    return {"computed": result.computed_shards, "committed": sorted(committed), "digest": result.content_digest}


def full(config: ExtractConfig) -> dict[str, Any]:
    """Extract until there is no room."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ["FULL_AFTER"] = "9"
    return run(config)


def main() -> None:
    mode, raw, out, kind, number = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    config = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4, batch_size=2, workers=1, format=kind)
    sys.stdout.flush()
    if mode == "beside":
        Filling.before[0] = partial(meet, out.with_name("meeting"), number)
        children = [in_child(lambda: run(config)) for _ in range(number)]
        codes = [os.waitpid(child, 0)[1] for child in children]
    else:
        codes = [os.waitpid(in_child(lambda work=work: work(config)), 0)[1] for work in (full, run)]  # type: ignore[misc]
    sys.exit(max(map(os.waitstatus_to_exitcode, codes)))


if __name__ == "__main__":
    main()
