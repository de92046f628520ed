"""A trained run as one folder to hand over: its own form, ONNX, sentence-transformers; and a bridge to CLIP_benchmark.

`run` writes a folder; each further form is a file of its own; `pipeline.apps.opening` reads it.
"""
