"""The names of the index kinds, apart from the kinds themselves: settings are checked without loading torch."""

KINDS = ("auto", "torch", "flat", "ivf", "hnsw")
EXACT_BELOW = 1_000_000  # rows
