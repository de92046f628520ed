"""A trained run as one folder to hand over: its own form, ONNX, sentence-transformers; and a bridge to CLIP_benchmark.

`exported` reads what `run` writes; `card` is the model card; each further form is a file of its own.
"""
