"""Sweep the installed libraries and write the table of docs/encoders.md: `python -m tests.encoders.sweep`.

    python -m tests.encoders.sweep             # every family of timm, transformers and open_clip; minutes
    python -m tests.encoders.sweep timm        # one library; the others' rows stay as they are
    python -m tests.encoders.sweep --show vit  # rows of families whose name holds this, nothing written

`pytest -m conformance` runs the same cases and compares them with the table.
"""

import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.encoders import sweep_open_clip, sweep_timm, sweep_transformers
from tests.encoders.conformance import Case, Row

TABLE = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"
BEGIN, END = "<!-- written by python -m tests.encoders.sweep -->", "<!-- end of what is written -->"
LIBRARIES = {"timm": sweep_timm.cases, "transformers": sweep_transformers.cases, "open_clip": sweep_open_clip.cases}
PACKAGES = {"timm": "timm", "transformers": "transformers", "open_clip": "open_clip_torch"}
HEAD = "| library | family | tried | layers | pooled by | |\n|---|---|---|---|---|---|\n"


def cases() -> list[Case]:
    """Return every case of every library."""
    return [case for each in LIBRARIES.values() for case in each()]


def swept(case: Case) -> Row:
    """Return the row of a case; an error of the sweep's own is a row as well."""
    try:
        return case.run()
    except Exception as error:
        text = f"ERROR: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return Row(library=case.library, family=case.family, verdict=text)


def line(row: Row) -> str:
    """Return a row of the table."""
    cells = [row.library, row.family, row.example, row.layers, row.pooling, row.verdict]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def recorded() -> dict[tuple[str, str], Row]:
    """Return (library, family) → row of the table as it stands."""
    text = TABLE.read_text(encoding="utf-8")
    written = text.partition(BEGIN)[2].partition(END)[0].split(HEAD)[-1]
    rows = [
        Row(*[cell.strip() for cell in each.strip().strip("|").split("|")]) for each in written.strip().splitlines()
    ]
    return {(row.library, row.family): row for row in rows if row.library in LIBRARIES}


def write(rows: Iterable[Row]) -> None:
    """Put rows into the table, in the place of what stands there."""
    text = TABLE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    kept = list(rows)
    proven = sum(row.verdict == "proven" for row in kept)
    tried = [row for row in kept if not row.verdict.startswith("not tried")]
    libraries = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    said = f"{proven} of {len(tried)} families that were tried are proven, of {len(kept)} in all ({libraries}).\n\n"
    TABLE.write_text(f"{before}{BEGIN}\n\n{said}{HEAD}{''.join(map(line, kept))}\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Sweep what is asked for."""
    warnings.filterwarnings("ignore")
    show = arguments[1:] if arguments[:1] == ["--show"] else []
    wanted = [] if show else arguments
    old, rows = recorded(), []
    for case in cases():
        chosen = any(part in case.family for part in show) if show else not wanted or case.library in wanted
        row = swept(case) if chosen else old.get((case.library, case.family))
        if chosen and row:
            sys.stdout.write(line(row))
        rows.append(row or Row(library=case.library, family=case.family, verdict="not tried yet"))
    if not show:
        write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
