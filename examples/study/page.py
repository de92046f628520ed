"""The study's page: Markdown with tables, figures beside it in a folder of the page's name. Made of result files alone.

write_page(config, data=Path("data"), out=Path("data/4_study"), page=Path("docs/study.md"), command="…")
"""

import re
from collections.abc import Iterator
from pathlib import Path

from examples.study.comparisons import claims, main, other_grids
from examples.study.config import StudyConfig
from examples.study.content import Content, Section
from examples.study.diagnosis import confidence, pictures, robustness, schedules
from examples.study.maps import make_maps
from examples.study.run import RECORD, finished_sweeps
from examples.study.statistics import groups_of, rows_that, select
from examples.study.tables import cost_table, table
from pipeline.errors import UserError
from pipeline.files import read_json, write_atomically
from pipeline.progress import Progress, say, silent
from pipeline.words import duration


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
    parts = finished_sweeps(config, data, out)
    groups = groups_of(parts)
    if not groups:
        remedy = "run the study without --only-page"
        raise UserError(expected="finished cells of the study", found="none", where=str(out), remedy=remedy)
    for each in parts:
        if not each.results:
            say(
                progress,
                f"{each.grid}, {each.encoders}: nothing is finished, so the page says nothing of it.",
            )
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[str] = []

    def figure(name: str, svg: str) -> str:
        file = f"{re.sub(r'[^a-z0-9-]+', '-', name.lower())}.svg"
        write_atomically(folder / file, svg.encode())
        made.append(file)
        return f"![{name}]({folder.name}/{file})"

    with_maps = [each for each in parts if each.results]
    content = Content(
        config=config,
        groups=groups,
        record=read_json(out / RECORD, "a study") if (out / RECORD).is_file() else {},
        maps=make_maps(config, with_maps, out),
        command=command,
        figure=figure,
    )
    pieces = [f"# {config.title}", _about(config, command)]
    pieces += [piece.rstrip("\n") for section in SECTIONS for piece in section(content)]
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


def costs(content: Content) -> Iterator[str]:
    """Yield what it took."""
    groups = content.grid(content.config.main)
    yield "## What it costs"
    if groups:
        yield "Core-seconds of a run (projectors alone, one thread, features already read), mean over seeds:"
        captions = groups[-1].kind.captions
        yield cost_table(select(groups, captions=captions, layers=groups[-1].kind.layers))
    parts = content.record.get("parts", {})
    if parts:
        yield "The whole study, measurements included:"
        rows = (
            [name, f"{each['core']:.0f}", duration(each["wall"]), str(each["jobs"])] for name, each in parts.items()
        )
        yield table(["grid", "core-seconds", "wall time", "at once"], rows)
    versions = ", ".join(f"{name} {value}" for name, value in content.record.get("versions", {}).items())
    if versions:
        yield f"Made with {versions} on {content.record.get('machine', 'an unknown machine')}."


def conduct(content: Content) -> Iterator[str]:
    """Yield what was done, what was chosen where, and how to do it again."""
    config = content.config
    yield "## How it was done"
    yield f"    {content.command}"
    yield (
        "The command imports and extracts what is missing, does every cell (method × training images × captions × "
        "layers × seed) that is not finished, and writes this page; no number in it was typed. By pieces: "
        "`--grid NAME`; the cost first: `--dry-run`; the page alone: `--only-page`. Every cell's numbers are in "
        "`results.csv`, the rank of every query beside it."
    )
    growing = rows_that(config, lambda recipe, method: "grow" in (method.layers or recipe.layers))
    grown = f"; the layers of {', '.join(growing)}, which are added while validation recall rises" if growing else ""
    sets = f"; zero-shot on {', '.join(config.zero_shot)}" if config.zero_shot else ""
    yield "\n".join(
        [
            f"- **Trained on** the split `train` of {config.dataset}: n images and their captions, drawn by seed "
            f"({', '.join(map(str, config.seeds))}); fewer images are a part of more.",
            "- **Chosen on training images**: the layers (mutual nearest neighbours, arXiv 2506.16895; the first "
            "seed's images, once for all methods).",
            "- **Chosen on validation** (split `val`): ridge strengths, the step that training keeps, the temperature "
            f"of closed forms, and which closed form is called the best{grown}.",
            f"- **Measured on** the split `{config.split}`, on which nothing was chosen{sets}. "
            "Text → image: the gallery is the unique images; image → text: any of the image's captions counts; ties "
            "count against the method.",
        ]
    )
    if config.notes:
        yield "\n".join(f"- {note}" for note in config.notes)


SECTIONS: tuple[Section, ...] = (claims, main, other_grids, robustness, confidence, schedules, pictures, costs, conduct)
"""The page, from top to bottom."""
