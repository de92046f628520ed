"""Metrics: pure functions on arrays or tensors; numbers or arrays out, blocked, without state.

`retrieval` (ranks, recall, mAP), `classification` (prompts, kNN, linear probe), `calibration`, `similarity`
(mutual kNN and CKA with a permutation null, trustworthiness), `bootstrap`. Nothing heavy is imported here.
"""
