"""The README's table and gallery, from what `dvc repro` left: python -m examples.front_page --gallery docs/gallery.png.

Prints the table of methods from data/3_report/metrics.json, in the README's own form, and draws what
`pipeline search` finds for five sentences. The pictures of the default data set are OpenMoji's (CC BY-SA 4.0).
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN, REPORT = Path("data/2_projectors/fewpairs"), Path("data/3_report/metrics.json")
SENTENCES = ("a red heart", "a vehicle with wheels", "a building", "an animal in the sea", "a person at work")
TOP = 6
COLUMNS = ("image→text R@1 / R@10", "text→image R@1 / R@10", "zero-shot acc@1")


def table(metrics: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """Return the table of methods in Markdown, best mean recall first.

    Args:
        metrics: Method → its measures, as in metrics.json.
        about: Method → what to say of it; others are named alone.
    """
    lines = [f"| method | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name in sorted(metrics, key=lambda name: -_mean_recall(metrics[name])):
        values = metrics[name]
        cells = [
            f"{_percent(values, f'{kind}_retrieval_recall@1')} / {100 * values[f'{kind}_retrieval_recall@10']:.1f}"
            for kind in ("text", "image")
        ]
        said = f": {about[name]}" if name in about else ""
        lines.append(f"| `{name}`{said} | {' | '.join(cells)} | {_percent(values, 'acc1')} |")
    return "\n".join(lines)


def _mean_recall(values: Mapping[str, Any]) -> float:
    return sum(float(values[f"{kind}_retrieval_recall@{k}"]) for kind in ("text", "image") for k in (1, 5, 10))


def _percent(values: Mapping[str, Any], name: str) -> str:
    spread = values.get(f"{name}_std")
    return f"{100 * values[name]:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def gallery(run: Path, sentences: tuple[str, ...], out: Path) -> None:
    """Draw the best `TOP` pictures of each sentence, a row a sentence; only test images are searched.

    Args:
        run: A run of `pipeline align`.
        sentences: What is looked for.
        out: PNG file to write.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    from pipeline.apps.config import SearchConfig
    from pipeline.apps.search import open_searcher

    searcher = open_searcher(SearchConfig(run=run, split="test"))
    figure, rows = plt.subplots(len(sentences), TOP, figsize=(TOP * 1.25, len(sentences) * 1.3), squeeze=False)
    for axes, sentence in zip(rows, sentences, strict=True):
        found = searcher.by_text(sentence, TOP)
        for axis in axes:
            axis.axis("off")
        for axis, hit in zip(axes, found.images, strict=False):
            with Image.open(Path(found.data) / hit.file) as picture:
                axis.imshow(picture.convert("RGB"))
        axes[0].set_title(f"“{sentence}”", loc="left", fontsize=10)
    figure.tight_layout(pad=0.4)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Print the table; draw the gallery where a file for it is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, help="PNG file to write")
    given = parser.parse_args()
    sys.stdout.write(table(json.loads(REPORT.read_text(encoding="utf-8")), {}) + "\n")
    if given.gallery:
        gallery(RUN, SENTENCES, given.gallery)


if __name__ == "__main__":
    main()
