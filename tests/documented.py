"""The code blocks of README and docs: fenced ones and indented ones, each with its page and its kind."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = {ROOT / "docs" / "study.md"}
PAGES = [
    ROOT / "README.md",
    *sorted({*(ROOT / "docs").rglob("*.md")} - GENERATED),
    ROOT / "data" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)((?:    .*\n)+)")


@dataclass(frozen=True)
class Block:
    """A code block."""

    page: str
    """Its page, relative to the repository."""
    kind: str
    """The word behind the fence (sh, python, yaml); empty where it is indented."""
    text: str
    """What stands in it."""

    @property
    def first(self) -> str:
        """Its first line, which names it."""
        return self.text.splitlines()[0]

    @property
    def lines(self) -> list[str]:
        """Its lines without comments behind commands."""
        return [line.split("  #")[0].rstrip() for line in self.text.splitlines()]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    found = [(match.start(), Block(name, match[1], match[2])) for match in FENCE.finditer(text)]
    bare = FENCE.sub(lambda match: "x" * (len(match[0]) - 1) + "\n", text)
    for match in INDENTED.finditer(bare):
        lines = [line.removeprefix("    ") for line in match[1].splitlines()]
        found.append((match.start(), Block(name, "", "\n".join(lines) + "\n")))
    return [block for _, block in sorted(found, key=lambda each: each[0])]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
