"""Sentences for the person who waits: on standard error, so that standard output stays for results."""

import sys


def on_stderr(sentence: str) -> None:
    """Print one sentence on standard error at once."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
