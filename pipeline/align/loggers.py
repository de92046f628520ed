"""Training logs for other programs: DVCLive, TensorBoard, Weights & Biases. Off unless `log_to` names one.

A logger reads what a finished seed wrote and never sees the training: numbers, digests and resume cannot depend on it.
Logs go to `<run>/logs/<logger>/seed-<s>`; those of an earlier call are replaced. A new logger is a function and a line.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import MissingExtraError, PipelineError
from pipeline.files import one_line

LAST = ("temperature", "learning_rate", "steps", "seconds")
"""What of a seed's record is logged beside its validation metrics."""


@dataclass(frozen=True, kw_only=True)
class LoggedSeed:
    """A finished seed as it lies in its run's folder."""

    run: str
    """Name of the run."""
    seed: int
    """The seed."""
    digest: str
    """Digest of all that it depends on."""
    settings: Mapping[str, Any]
    """The run's settings, plain data, nested."""
    history: tuple[Mapping[str, Any], ...]
    """Rows of history.jsonl, see `pipeline.align.train`."""
    record: Mapping[str, Any]
    """Its entry in run.json."""

    def points(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield (step, values): `train/loss`, `train/lr`, …, and `val/<metric>` at validated steps.

        A closed form takes no steps; its rows, one a ridge strength and the chosen one, are counted instead.
        """
        for place, row in enumerate(self.history):
            values = {_name(name): float(value) for name, value in row.items() if name != "step" and _number(value)}
            yield row["step"] or place, values

    def final(self) -> dict[str, float]:
        """Return what the seed came to: `final/<metric>` on validation, and `final/` with the names of `LAST`."""
        found = {**self.record["validation"], **{name: self.record.get(name) for name in LAST}}
        return {f"final/{name}": float(value) for name, value in found.items() if _number(value)}

    def flat_settings(self) -> dict[str, Any]:
        """Return the settings by dotted names: {"recipe.training.epochs": 60, …}."""
        return dict(_flat(self.settings, ""))


def _name(name: str) -> str:
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _write_dvclive(seed: LoggedSeed, folder: Path) -> None:
    """Write `metrics.json`, `params.yaml` and a table for each curve below `plots/metrics/`.

    No experiment of DVC is made of it, no dvc.yaml is touched, no machine is watched.
    """
    from dvclive import Live

    with Live(
        str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False, cache_images=False
    ) as live:
        live.log_params(seed.flat_settings())
        for step, values in seed.points():
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)
        for name, value in seed.final().items():
            live.log_metric(name, value, plot=False)


def _write_tensorboard(seed: LoggedSeed, folder: Path) -> None:
    """Write scalars, and the settings as text, in one event file, through torch. `tensorboard --logdir RUN/logs`."""
    from torch.utils.tensorboard import SummaryWriter

    last = 0
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("settings", f"```json\n{json.dumps(seed.settings, indent=2)}\n```")
        for step, values in seed.points():
            last = step
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for name, value in seed.final().items():
            writer.add_scalar(name, value, last)


def _write_wandb(seed: LoggedSeed, folder: Path) -> None:
    """Write one run, offline: nothing leaves the machine before `wandb sync`, or unless WANDB_MODE says `online`.

    The same seed keeps its id, so that a second sync adds no second run.
    """
    mode: Literal["offline"] | None = None if "WANDB_MODE" in os.environ else "offline"  # None: what it says counts
    if os.environ.get("WANDB_MODE") != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it reports on itself, offline too
    import wandb

    settings = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True)
    run = wandb.init(
        project="fewpairs",
        name=f"{seed.run}-seed-{seed.seed}",
        id=seed.digest[:16],
        dir=str(folder),
        config=dict(seed.settings),
        mode=mode,
        settings=settings,
    )
    for step, values in seed.points():
        run.log(values, step=step)
    run.summary.update(seed.final())
    run.finish()


LOGGERS: dict[str, Callable[[LoggedSeed, Path], None]] = {
    "dvclive": _write_dvclive,
    "tensorboard": _write_tensorboard,
    "wandb": _write_wandb,
}
"""The loggers by name, which is the package that each needs: they write a seed into an empty folder."""


def need_logger(name: str) -> None:
    """Make sure, before the work, that the package of a logger of the table is installed.

    Raises:
        MissingExtraError: It is not.
    """
    if find_spec(name) is None:
        raise MissingExtraError(name, "pip install 'fewpairs[loggers]'", f"training logs, log_to: {name}")


def log_seeds(name: str, run: Path, seeds: Sequence[LoggedSeed]) -> Path:
    """Write the logs of a run's seeds; return the folder of all of them.

    Args:
        name: A name of `LOGGERS`.
        run: Folder of the run.
        seeds: Its seeds.

    Raises:
        PipelineError: The logger failed; the run itself is complete.
    """
    logs = run / "logs" / name
    for seed in seeds:
        folder = logs / f"seed-{seed.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            LOGGERS[name](seed, folder)
        except Exception as error:  # whatever another program's library raises, no training is lost by it
            raise PipelineError(
                expected=f"a log by {name}",
                found=f"{type(error).__name__}: {one_line(error)}",
                where=str(folder),
                remedy="the run itself is complete; leave out log_to to do without a log",
            ) from error
    return logs
