"""The names of the index kinds and the rule behind `auto`, apart from the kinds themselves: nothing heavy is loaded.

| rows N of width D | kind | why |
|---|---|---|
| below a million | flat | a blocked exact search answers before anything else is built |
| from a million on, 4·N·D bytes fit the memory | ivf | whole vectors in lists: no loss but the lists not looked into |
| …, N·D bytes fit | sq8 | lists of vectors in 8 bits a number |
| else | ivfpq | lists of product-quantised vectors, a quarter of a byte a number |

`hnsw` is never chosen by itself: it is the fastest to ask, and by far the slowest to build.
"""

KINDS = ("auto", "torch", "flat", "ivf", "hnsw", "sq8", "ivfpq")
EXACT_BELOW = 1_000_000
"""Rows."""
MEMORY = 8 * 2**30
"""Bytes that an index may take where nothing else is said."""


def kind_for(rows: int, width: int, memory: int = MEMORY) -> str:
    """Return the kind that the rule above names for a gallery of unit vectors."""
    if rows < EXACT_BELOW:
        return "flat"
    if 4 * rows * width <= memory:
        return "ivf"
    return "sq8" if rows * width <= memory else "ivfpq"
