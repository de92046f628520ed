"""Stage 3 of 3: 1_features + 2_projectors → data/3_report, every method side by side.

Run from the checkout: `python stages/evaluate.py`; settings: params.yaml, section `evaluate`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.config import load_params
from pipeline.errors import exit_with_sentence
from pipeline.evaluate.config import evaluate_config
from pipeline.evaluate.run import evaluate
from pipeline.words import on_stderr

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="this run alone, not those of all methods")
    parser.add_argument("--out", type=Path, help="folder of the report; default: data/3_report")
    item = parser.parse_args()
    with exit_with_sentence():
        config = evaluate_config(load_params(Path("params.yaml")))
        runs = (item.run,) if item.run else config.runs
        evaluate(replace(config, runs=runs, out=item.out or config.out), on_stderr)
