"""The study: data/1_features → data/4_study, every method on every grid of examples/study.yaml, and the page about it.

Run from the checkout: `python stages/study.py`, or with another file: `python stages/study.py --file mine.yaml`. The
same as `pipeline study`, for those who call stages; no stage of dvc.yaml, because it takes hours.
"""

import argparse
from pathlib import Path

from pipeline.errors import exit_with_sentence
from pipeline.study.page import write_page
from pipeline.study.plan import load_study
from pipeline.study.run import run_study
from pipeline.words import on_stderr

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path("examples/study.yaml"), help="the study")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    item = parser.parse_args()
    data, out, page = Path("data"), Path("data/4_study"), Path("docs/study.md")
    with exit_with_sentence():
        config = load_study(item.file)
        run_study(config, data=data, out=out, jobs=item.jobs, progress=on_stderr)
        command = f"python stages/study.py --file {item.file}"
        write_page(config, data=data, out=out, page=page, command=command, progress=on_stderr)
