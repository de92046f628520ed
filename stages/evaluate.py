"""Stage 3 of 3: 1_features + 2_projectors → data/3_report, every method side by side.

Run from the checkout: `python stages/evaluate.py`; settings: params.yaml, section `evaluate`.
"""

from pathlib import Path

from pipeline.config import load_params
from pipeline.errors import exit_with_sentence
from pipeline.evaluate.params import evaluate_config
from pipeline.evaluate.run import evaluate
from pipeline.messages import on_stderr

if __name__ == "__main__":
    with exit_with_sentence():
        evaluate(evaluate_config(load_params(Path("params.yaml"))), on_stderr)
