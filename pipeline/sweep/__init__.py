"""Many small runs: every combination of method, pairs, captions, layers and seed, each aligned and measured.

Run by `pipeline sweep`; `examples/study` makes a page of several sweeps.
"""
