"""The loggers by name; a new one is a file and a line. `need_logger` looks before the work, `log_seeds` writes after.

Logs go to `<run>/logs/<logger>/seed-<s>`; those of an earlier call are replaced.
"""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.align.loggers import dvclive_log, tensorboard_log, wandb_log
from pipeline.align.loggers.base import LoggedSeed, Logger
from pipeline.errors import MissingExtraError, PipelineError

LOGGERS: dict[str, Logger] = {
    "dvclive": Logger("dvclive", dvclive_log.write),
    "tensorboard": Logger("tensorboard", tensorboard_log.write),
    "wandb": Logger("wandb", wandb_log.write),
}


def need_logger(name: str) -> Logger:
    """Return a logger of the table whose package is installed.

    Raises:
        MissingExtraError: It is not.
    """
    logger = LOGGERS[name]
    if find_spec(logger.package) is None:
        raise MissingExtraError(logger.package, "pip install 'fewpairs[loggers]'", f"training logs, log_to: {name}")
    return logger


def log_seeds(name: str, run: Path, seeds: Sequence[LoggedSeed]) -> Path:
    """Write the logs of a run's seeds; return the folder of all of them.

    Args:
        name: A name of `LOGGERS`.
        run: Folder of the run.
        seeds: Its seeds.

    Raises:
        MissingExtraError: The logger's package is not installed.
        PipelineError: The logger failed; the run itself is whole.
    """
    logger, place = need_logger(name), run / "logs" / name
    for seed in seeds:
        folder = place / f"seed-{seed.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            logger.write(seed, folder)
        except Exception as error:  # whatever another program's library raises, no training is lost by it
            raise PipelineError(
                expected=f"a log by {logger.package}",
                found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                where=str(folder),
                remedy="the run itself is whole; leave log_to out to go without",
            ) from error
    return place
