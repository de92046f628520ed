"""How the stage tells what it does: one callable that gets a sentence; the command line prints it, tests collect it."""

from collections.abc import Callable

Report = Callable[[str], None]


def silent(sentence: str) -> None:
    """Ignore a sentence."""
