"""TensorBoard, through torch: scalars and the settings as text in one event file. `tensorboard --logdir RUN/logs`."""

import json
from pathlib import Path

from pipeline.align.loggers.base import LoggedSeed


def write(seed: LoggedSeed, folder: Path) -> None:
    """Write a seed."""
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
