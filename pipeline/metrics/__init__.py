"""Metrics: pure functions on arrays or tensors; numbers or arrays out, blocked, without state.

`retrieval` (ranks, recall, mAP), `classification` (prompts, kNN, linear probe), `calibration`, `layer_pairs`
(mutual kNN and CKA with a permutation null), `bootstrap`, `geometry`. Nothing heavy is imported here.
"""
