"""What a local Ray does: `python -m tests.engines.on_local_ray quick|whole FOLDER IMAGE TEXT`; prints JSON.

All in one process with one Ray, as a Ray takes seconds to start; FOLDER holds the raw data set `raw`, IMAGE and
TEXT are stores.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.engines import Engine, open_engine
from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.progress import Update
from pipeline.sweep.config import SweepConfig, methods_of
from pipeline.sweep.run import sweep
from tests.engines import pieces
from tests.engines.processes import committed, kill_all, until
from tests.engines.recording import RECORD
from tests.sweep.conftest import QUICK

IMAGE, OTHER = "tests.engines.recording:Recording", "tests.extract.tiny_encoders:OtherImage"
PREPARING = "tests.engines.recording:RecordingAll"


def extract_with_a_kill(engine: Engine, folder: Path) -> dict[str, Any]:
    """Extract, and kill one of the two workers after the second commit."""
    out, updates, killed = folder / "out", list[Update](), list[int]()

    def kill_one() -> None:
        until(lambda: committed(out) >= 2, "two shards")
        killed.append(int(Path(os.environ[RECORD]).read_text().split()[0]))  # one that has loaded the encoder
        kill_all(killed)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = engine.extract(config_of(folder, out), updates.append)
    killer.join()
    counts = [update.done for update in updates if not update.message]
    return {
        "digest": result.content_digest,
        "rows": result.rows,
        "shards": [result.computed_shards, result.skipped_shards],
        "committed": committed(out),
        "killed": len(killed),
        "counts": counts,
        "said": [update.message for update in updates if update.message],
        "record": record(),
    }


def decode_with_a_kill(engine: Engine, folder: Path) -> dict[str, Any]:
    """Extract with one encoder and one decoder, and kill the decoder once it has made some images ready."""
    before = len(record())
    killed, ended = list[int](), threading.Event()

    def at_decoders() -> list[str]:
        encoders = {process for process, word in record()[before:] if word.isdecimal()}
        others = [process for process, word in record()[before:] if word == "prepare" and process not in encoders]
        return others if encoders else []

    def kill_one() -> None:
        until(lambda: ended.is_set() or len(at_decoders()) >= 8, "eight images by a decoder")
        killed.extend(map(int, at_decoders()[-1:]))
        kill_all(killed)

    killer = threading.Thread(target=kill_one)
    killer.start()
    config = config_of(folder, folder / "decoded", dataset=folder / "many", encoder=PREPARING, decode_cpus=1)
    result = engine.extract(config)
    ended.set()
    killer.join()
    return {
        "digest": result.content_digest,
        "rows": result.rows,
        "killed": killed,
        "record": [(int(process), word) for process, word in record()[before:]],
    }


def record() -> list[tuple[str, str]]:
    """Return (process, word) of each line that an encoder wrote down."""
    return [tuple(line.split()) for line in Path(os.environ[RECORD]).read_text().splitlines()]  # type: ignore[misc]


def config_of(folder: Path, out: Path, **changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {
        "dataset": folder / "raw",
        "encoder": IMAGE,
        "shard_rows": 4,
        "batch_size": 2,
        "workers": 1,
    } | changes
    return ExtractConfig(out=out, **values)


def swept(engine: Engine, image: Path, text: Path, out: Path) -> dict[str, Any]:
    config = SweepConfig(
        image=(image,),
        text=(text,),
        out=out,
        methods=methods_of(("cca", "info_nce"), "test"),
        pairs=(50, 100),
        seeds=(1, 42),
        split="test",
        settings=QUICK,
    )
    results = sweep(config, jobs=2, side_by_side=engine.side_by_side)
    return {"results": [{name: value for name, value in each.items() if name != "seconds"} for each in results]}


def failed(work: Callable[[], Any]) -> dict[str, Any]:
    """Return what a call raised."""
    try:
        found = work()
    except PipelineError as error:
        return {"type": type(error).__name__, "code": error.exit_code, "sentence": error.sentence()}
    except OSError as error:
        return {"type": type(error).__name__, "sentence": str(error)}
    return {"found": found}


def quick(engine: Engine, folder: Path, image: Path, text: Path) -> dict[str, Any]:
    """Return what the short tests look at; every worker that is started costs seconds."""
    items = [(str(folder), number) for number in (3, 4, 5)]
    return {
        "extract": extract_with_a_kill(engine, folder),
        "decode": decode_with_a_kill(engine, folder),
        "sweep": swept(engine, image, text, folder / "sweep"),
        "square": failed(lambda: engine.side_by_side(pieces.square_or_die, items, jobs=2)),
        "mismatch": failed(lambda: engine.side_by_side(pieces.mismatch, [3], jobs=2)),
    }


def whole(engine: Engine, folder: Path) -> dict[str, Any]:
    """Return what the long tests look at."""
    first = engine.extract(config_of(folder, folder / "out", encoder=OTHER))
    plain = config_of(folder, folder / "out")
    dry = config_of(folder, folder / "new", dry_run=True)
    return {
        "first": first.content_digest,
        "again": engine.extract(config_of(folder, folder / "out", encoder=OTHER)).sentence(),
        "other key": failed(lambda: engine.extract(plain)),
        "replaced": engine.extract(replace(plain, replace=True)).content_digest,
        "dry": engine.extract(dry).sentence(),
        **{
            work.__name__: failed(partial(engine.side_by_side, work, [3, 4], jobs=2))
            for work in (pieces.divide, pieces.missing, pieces.die)
        },
    }


def main() -> None:
    which, folder, image, text = sys.argv[1], *map(Path, sys.argv[2:5])
    os.environ["TINY_SLEEP"] = "0.3"
    with open_engine("ray") as engine:
        answers = quick(engine, folder, image, text) if which == "quick" else whole(engine, folder)
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
