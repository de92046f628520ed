"""The study's page: Markdown with tables, figures beside it in a folder of the page's name. Made of result files alone.

write_page(config, data=Path("data"), out=Path("data/4_study"), page=Path("docs/study.md"), command="…")
"""

import re
from pathlib import Path

from examples.study.comparisons import SECTIONS
from examples.study.config import StudyConfig
from examples.study.maps import make_maps
from examples.study.material import Material
from examples.study.run import RECORD, finished_parts
from examples.study.statistics import groups_of
from pipeline.errors import UserError
from pipeline.files import write_atomically
from pipeline.progress import Progress, say, silent
from pipeline.projectors.table import read_json


def write_page(
    config: StudyConfig, *, data: Path, out: Path, page: Path, command: str = "", progress: Progress = silent
) -> Path:
    """Write the page of all that is finished, and its figures; figures of an older page go.

    Args:
        config: The study.
        data: Folder with `1_features`.
        out: Folder of the results.
        page: The Markdown file.
        command: What makes it, for the page.
        progress: Gets a sentence for what is left out.

    Raises:
        UserError: No cell is finished, or a file of results is damaged.
    """
    parts = finished_parts(config, data, out)
    groups = groups_of(parts)
    if not groups:
        remedy = "run the study without --only-page"
        raise UserError(expected="finished cells of the study", found="none", where=str(out), remedy=remedy)
    for each in parts:
        if not each.results:
            say(
                progress,
                f"{each.part.grid}, {each.part.encoders}: nothing is finished, so the page says nothing of it.",
            )
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[str] = []

    def figure(name: str, svg: str) -> str:
        file = f"{re.sub(r'[^a-z0-9-]+', '-', name.lower())}.svg"
        write_atomically(folder / file, svg.encode())
        made.append(file)
        return f"![{name}]({folder.name}/{file})"

    with_maps = [each.part for each in parts if each.results]
    material = Material(
        config=config,
        groups=groups,
        record=read_json(out / RECORD, "a study") if (out / RECORD).is_file() else {},
        maps=make_maps(config, with_maps, out),
        command=command,
        figure=figure,
    )
    pieces = [f"# {config.title}", _about(config, command)]
    pieces += [piece.rstrip("\n") for section in SECTIONS for piece in section(material)]
    write_atomically(page, ("\n\n".join(pieces) + "\n").encode())
    for old in folder.glob("*.svg"):
        if old.name not in made:
            old.unlink()
    return page


def _about(config: StudyConfig, command: str) -> str:
    encoders = sorted({f"{pair[0]} × {pair[1]}" for grid in config.grids.values() for pair in grid.encoders})
    return (
        f"Frozen encoders, {config.dataset}, {len(config.methods)} methods, {len(config.seeds)} seeds. "
        f"Encoders (image × text): {', '.join(encoders)}. This page is made by `{command}` "
        "from the result files; how, and what was chosen on which split, stands at its end."
    )
