"""Frozen image and text encoders, aligned from a few thousand pairs: extract once, align small projectors, evaluate.

Run `pipeline --help` for the commands. By import: `pipeline.store`, `pipeline.encoders`, `pipeline.projectors`,
`pipeline.extract`, `pipeline.align`, `pipeline.evaluate` and `pipeline.apps`. This module itself imports nothing heavy.
"""

__version__ = "0.1.0"
