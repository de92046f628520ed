"""`--engine` and `--address`, as `extract` and `sweep` take them."""

from typing import Annotated

import typer

Name = Annotated[str, typer.Option("--engine", help="Where to work: local, or ray (a Ray cluster).")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The Ray cluster: HOST:PORT, or auto for the one that this machine belongs to; if unsaid RAY_ADDRESS, "
        "else a Ray on this machine alone.",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Cells at once, each in a process with one thread; 1 if unsaid, with --engine ray one a CPU.",
        show_default=False,
    ),
]
