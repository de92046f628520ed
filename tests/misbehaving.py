"""Work that goes wrong in a worker process; loads no torch, so that a worker starts at once."""

import os
import time
from pathlib import Path

from pipeline.errors import PipelineError, UnknownNameError


def misbehave(how: str) -> str:
    if how == "user":
        raise UnknownNameError("method", "infonce", ["info_nce"], "--method")
    if how == "work":
        raise PipelineError(expected="a finite loss", found="nan", where="step 3", remedy="lower the rate")
    if how == "unforeseen":
        raise ZeroDivisionError("division by zero")
    if how == "die":
        os._exit(3)
    if how == "hang":
        time.sleep(600)
    return how


def write_and_hang(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
