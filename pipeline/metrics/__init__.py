"""Metrics: pure functions on arrays or tensors; numbers or arrays out, blocked, without state.

`retrieval` (ranks, recall, mAP), `zero_shot`, `calibration`, `neighbours` (mutual kNN with a permutation null), `cka`,
`bootstrap`, `geometry`. Nothing heavy is imported here.
"""
