"""Search indexes over unit vectors: exact with torch, or one of faiss's kinds, in memory, stored, or built in parts.

index = build_index(gallery, "ivf")              # pipeline.indexes.index; "auto" goes by size
scores, positions = index.search(queries, 10)    # best first

`recall` measures and tunes, `stored` reads and writes a folder, `parts` lets several processes build one index.
"""

KINDS = ("auto", "torch", "flat", "ivf", "hnsw", "sq8", "ivfpq")
"""What an index can be, for options: `auto` and the table `pipeline.indexes.index.INDEXES`, without loading torch."""
MEMORY = 8 * 2**30
"""Bytes that an index may take by default."""
