"""Weights & Biases, offline: nothing leaves the machine before `wandb sync`, or unless WANDB_MODE says `online`."""

import os
from pathlib import Path

from pipeline.align.loggers.base import LoggedSeed


def write(seed: LoggedSeed, folder: Path) -> None:
    """Write a seed as one run; the same seed keeps its id, so that a second sync adds no second run."""
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else a crash of its own is told to its makers
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
