"""Training logs for other programs: DVCLive, TensorBoard, Weights & Biases. Off unless `log_to` names one.

A logger reads what a finished seed wrote and never sees the training: numbers, digests and resume cannot depend on it.
"""
