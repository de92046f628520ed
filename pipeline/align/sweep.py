"""Many runs in one process: methods × numbers of pairs, each with all its seeds.

for path in sweep(config, methods=("cca", "structure"), pairs=(500, 1000, None), report=print): ...
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.align.config import AlignConfig
from pipeline.align.report import Report, silent
from pipeline.align.run import align


def sweep(
    config: AlignConfig,
    *,
    methods: Sequence[str] = (),
    pairs: Sequence[int | None] = (),
    report: Report = silent,
) -> list[Path]:
    """Align with every method on every number of pairs; what is finished is reused, so a killed sweep goes on.

    Runs go to `<out>/<method>` or, where numbers of pairs are given, `<out>/<method>-n<pairs>` (`-all` for all).

    Args:
        config: Stores, seeds, layers, and settings that hold for every run; `out` is the folder of the runs.
        methods: Names of methods; the configuration's own where none are given.
        pairs: Numbers of training images, None for all; the configuration's own where none are given.
        report: Gets a sentence for each thing done.

    Raises:
        UserError: As `align`. All configurations are checked before the first run starts.
    """
    planned = [
        dataclasses.replace(config, method=method, pairs=count, out=config.out / _name(method, count, bool(pairs)))
        for method in methods or (config.method,)
        for count in pairs or (config.pairs,)
    ]
    done: list[Path] = []
    for number, one in enumerate(planned, start=1):
        report(f"Run {number} of {len(planned)}: {one.out.name}")
        done.append(align(one, report))
    return done


def _name(method: str, pairs: int | None, counted: bool) -> str:
    if not counted:
        return method
    return f"{method}-{'all' if pairs is None else f'n{pairs}'}"
