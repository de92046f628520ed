"""Search indexes over unit vectors: exact with torch, or one of faiss's kinds, in memory, stored, or built in parts.

index = build_index(gallery, "ivf")              # pipeline.indexes.index; "auto" goes by size
scores, positions = index.search(queries, 10)    # best first

`kinds` is the table of kinds, `recall` measures and tunes, `stored` reads and writes a folder, `parts` lets several
processes build one index, `on_disk` keeps its lists in a file that is mapped.
"""
