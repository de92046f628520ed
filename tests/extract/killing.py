"""Kill real extractions at random moments and finish them: `python -m tests.extract.killing RAW OUT FORMAT SEED KILLS`.

One process imports everything, and forks before any thread is started; each child is one run. Prints a JSON line for
each store: how often it was killed, what was committed before the last run, what that run computed, and its digest.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import tests.extract.tiny_encoders  # noqa: F401 - imported once, before the forks
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from tests.extract.building import IMAGE

KILLS_A_STORE = 4
_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def start(config: ExtractConfig, answer: Path) -> int:
    """Fork a run that leaves its result in a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        result = extract(config)
        answer.write_text(json.dumps({"computed": result.computed_shards, "digest": result.content_digest}))
        code = 0
    finally:
        os._exit(code)


def committed(out: Path) -> int:
    return len(list(out.glob("0*.json")))


def kill_at_random(child: int, out: Path, moments: random.Random) -> None:
    """Wait for none to two more commits and a part of the next one, whatever the machine's speed; then kill."""
    wanted, end = committed(out) + moments.randint(0, 2), time.monotonic() + 60
    while committed(out) < wanted and time.monotonic() < end and os.waitid(os.P_PID, child, _PEEK) is None:
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def one_store(config: ExtractConfig, moments: random.Random, kills: int) -> dict[str, object]:
    """Kill some runs on one store, then let one finish."""
    out = Path(str(config.out))
    shutil.rmtree(out, ignore_errors=True)
    answer = out.with_suffix(".answer")
    for _ in range(kills):
        answer.unlink(missing_ok=True)
        kill_at_random(start(config, answer), out, moments)
    before = committed(out)
    answer.unlink(missing_ok=True)
    _, status = os.waitpid(start(config, answer), 0)
    found = json.loads(answer.read_text()) if answer.exists() else {}
    return {"kills": kills, "status": status, "before": before, "after": committed(out), **found}


def main() -> None:
    raw, out, kind, seed, kills = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    config = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4, batch_size=2, workers=2, format=kind)
    moments = random.Random(seed)
    lines = [one_store(config, moments, 0)]
    while kills > 0:
        lines.append(one_store(config, moments, min(kills, KILLS_A_STORE)))
        kills -= KILLS_A_STORE
    sys.stdout.write("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
