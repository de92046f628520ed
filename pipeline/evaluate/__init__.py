"""Stage 3 of 3: features and projectors in, metrics and a report out.

Run by `pipeline evaluate` and `stages/evaluate.py`.
"""
