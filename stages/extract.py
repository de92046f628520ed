"""Stage 1 of 3: data/0_raw → data/1_features, one frozen encoder over one data set, the features of every layer.

Run from the checkout: `python stages/extract.py --dataset openmoji --encoder efficientnet-lite0`; settings:
params.yaml, sections `encoders` and `extract`.
"""

import argparse
from pathlib import Path

from pipeline.config import load_params
from pipeline.errors import exit_with_sentence
from pipeline.extract.config import extract_config
from pipeline.extract.run import extract
from pipeline.progress import progress_bar
from pipeline.words import on_stderr

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a folder of data/0_raw")
    parser.add_argument("--encoder", required=True, help="a short name of params.yaml: encoders")
    item = parser.parse_args()
    with exit_with_sentence(), progress_bar() as progress:
        result = extract(extract_config(load_params(Path("params.yaml")), item.dataset, item.encoder), progress)
    on_stderr(result.sentence())
