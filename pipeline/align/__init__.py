"""Stage 2 of 3, align: pick the layer pair and train small projectors on cached features.

Run by `pipeline align` and `stages/align.py` through `pipeline.align.run`; nothing heavy is imported here.
"""
