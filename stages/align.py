"""Stage 2 of 3: data/1_features → data/2_projectors, the layer pair and small projectors of one method.

Run from the checkout: `python stages/align.py --method structure`; settings: params.yaml, section `align`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.align.config import align_config
from pipeline.align.run import align
from pipeline.config import load_params
from pipeline.errors import exit_with_sentence
from pipeline.words import on_stderr

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True, help="a name of pipeline.align.recipe.METHODS")
    parser.add_argument("--out", type=Path, help="folder of the run; default: data/2_projectors/<method>")
    item = parser.parse_args()
    with exit_with_sentence():
        config = align_config(load_params(Path("params.yaml")), item.method)
        align(replace(config, out=item.out or config.out), on_stderr)
