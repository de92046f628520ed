"""Engines: where work that is cut into pieces runs: in this process and its children, or on a Ray cluster.

`pipeline.engines.table.open_engine(name)` gives one; `pipeline extract` and `sweep` take `--engine`.
"""
