"""Small runs for a worker: they square, fail in ways that are foreseen or not, or take their worker with them.

Nothing heavy is imported here, so that a worker for them starts quickly.
"""

import os
import signal
from pathlib import Path

from pipeline.errors import KeyMismatchError


def square(number: int) -> int:
    return number * number


def mismatch(number: int) -> int:
    raise KeyMismatchError([("pooling", "cls", "mean")], f"store {number}", "take another")


def divide(number: int) -> float:
    return number / 0


def missing(number: int) -> str:
    return Path(f"/nowhere/{number}").read_text()


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def square_or_die(item: tuple[str, int]) -> int:
    """Take the worker along at the first item of all."""
    folder, number = item
    mark = Path(folder) / "died"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return number * number
    os.kill(os.getpid(), signal.SIGKILL)
    return 0
