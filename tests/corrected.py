"""A run whose projectors are wrapped in the correction of hubs, as the default recipe's are."""

import shutil
from pathlib import Path

import torch

from pipeline.files import dump_signed, read_signed
from pipeline.projectors.base import unit_rows
from pipeline.projectors.csls import EXTRA, with_csls
from pipeline.projectors.run_record import AlignedRun, save_projector

BANK, WEIGHT = 12, 0.5
SCALE = 1 + 2 * WEIGHT
"""How many times as large plain cosines are as corrected ones."""


def corrected_copy(run: Path, to: Path) -> Path:
    """Copy a run and wrap each seed's projectors, the banks random; return the copy."""
    shutil.copytree(run, to)
    opened = AlignedRun.open(to)
    for entry in opened.trainings:
        draw = torch.Generator().manual_seed(entry.seed)
        banks = [unit_rows(torch.randn(BANK, opened.dim, generator=draw) + 0.5) for _ in range(2)]
        sides = opened.projector("image", entry.seed), opened.projector("text", entry.seed)
        wrapped = with_csls(*sides, banks[0], banks[1], neighbours=2, weight=WEIGHT)
        for side, projector in zip(("image", "text"), wrapped, strict=True):
            save_projector(to / entry.folder, side, projector)
    record = read_signed(to / "run.json", "a run")
    (to / "run.json").write_bytes(dump_signed({**record, "dim": opened.dim + EXTRA}))
    return to
