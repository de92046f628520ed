"""Evaluate runs: `evaluate(config)` fills a folder with metrics, tables, per_query.parquet, plots/ and report.html.

Run by `pipeline evaluate` and by `stages/evaluate.py`.
"""

import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from pipeline.errors import MissingExtraError, UserError
from pipeline.evaluate.config import USUAL_KS, EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, pairs_of_split, zero_shot_set
from pipeline.evaluate.features import NEAR, SAME, find_duplicates, find_probes
from pipeline.evaluate.leaderboard import Leaderboard, rank_runs
from pipeline.evaluate.output import (
    MARK,
    OWN,
    TIE_RULE,
    fresh_output,
    long_rows,
    metrics,
    metrics_table,
    write_report,
    write_tables,
)
from pipeline.evaluate.report.chapters import build_page
from pipeline.evaluate.report.page import (
    Caveat,
    Findings,
    Gallery,
    Page,
    Pictures,
    example_groups,
    measure_name,
    percent,
)
from pipeline.evaluate.report.summary import SMALL
from pipeline.evaluate.results import (
    RETRIEVAL,
    Measure,
    chance_level,
    measures_of,
    zero_shot_direction,
)
from pipeline.evaluate.single import evaluate_run
from pipeline.progress import Progress, say, silent
from pipeline.projectors.run_record import AlignedRun
from pipeline.runtime import cpu_cores, installed_versions
from pipeline.storage.contract import Storage
from pipeline.storage.local import is_url, open_recorded, open_storage
from pipeline.store.manifest import CLASSES, HEADER
from pipeline.store.views import Side
from pipeline.words import count, html_table

PACKAGES = ("fewpairs", "torch", "numpy", "scikit-learn", "faiss-cpu", "faiss-gpu")


class Evaluation(dict[str, Any]):
    """What metrics.json holds, as a dict, with the words and tables of the report.

    Args:
        values: What metrics.json holds: metric → number for one run, run → such a mapping for several.
        board: The runs, best first.
        page: The report's page.
        folder: The report's folder.
    """

    def __init__(self, values: Mapping[str, Any], board: Leaderboard, page: Page, folder: Storage) -> None:
        super().__init__(values)
        self.board, self.page, self.folder = board, page, folder

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds, as a plain dict."""
        return dict(self)

    @property
    def verdict(self) -> str:
        """The sentence that the report opens with."""
        return self.page.verdict

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """What to know before believing a number, the gravest first."""
        return self.page.caveats

    @property
    def warning(self) -> str:
        """A sentence on how little a small test set says; empty where it is not small."""
        return " ".join(f"{each.title}. {each.text}" for each in self.caveats if each.title.startswith(SMALL))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row a run and measure: mean, std over seeds, interval, chance.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            pandas: Any = import_module("pandas")
        except ImportError as error:
            raise MissingExtraError("pandas", "pip install pandas", "evaluation.to_pandas()") from error
        return pandas.DataFrame(list(long_rows(self.board)))

    def show(self) -> None:
        """Print the table of measures, the verdict and what to know before believing it."""
        sys.stdout.write(f"{self}\n")

    def __str__(self) -> str:
        """Return what `show` prints."""
        lines = [metrics_table(self.board), self.verdict]
        lines += [self.warning] if self.warning else []
        others = [each.title for each in self.caveats if not each.title.startswith(SMALL)]
        lines += [f"Before you believe it: {'; '.join(others)}."] if others else []
        return "\n".join([*lines, f"Report: {self.folder / 'report.html'}"])

    def __repr__(self) -> str:
        runs = ", ".join(run.name for run in self.board.runs)
        return f"<Evaluation of {runs} on {count(self.board.images(self.board.lead), 'image')}; {self.folder}>"

    def _repr_html_(self) -> str:
        columns = [measure_name(measure) for measure in self.board.measures]
        rows = [[run.name, *(percent(run.mean(name)) for name in self.board.names)] for run in self.board.runs]
        return html_table(f"{self.verdict} Percent, means over seeds.", ["run", *columns], rows)


def evaluate(config: EvaluateConfig, progress: Progress = silent) -> Evaluation:
    """Evaluate one run or several side by side.

    Args:
        config: What, on what, where to.
        progress: Gets a sentence at every step.

    Returns:
        What metrics.json holds, a dict that knows the report as well.

    Raises:
        UserError: A run, store, split or setting is at fault; the sentence says which.
    """
    started = time.perf_counter()
    runs = name_runs([AlignedRun.open(path) for path in config.runs])
    image, text = Side.open("image", config.image), Side.open("text", config.text)
    pairs = pairs_of_split(image, text, config.split)
    images, captions = len(pairs.pairs.image_rows), len(pairs.pairs.caption_rows)
    check_cuts(config.ks, images)
    sets = open_sets(config, image)
    sizes = (count(images, "image"), count(captions, "caption"), count(len(sets), "zero-shot set"))
    say(progress, ", ".join(sizes))
    results = []
    for name, run in runs.items():
        say(progress, f"evaluating {name}, {count(len(run.seeds), 'seed')}")
        results.append(evaluate_run(name, run, pairs, sets, config))
    board = rank_runs(results, measures_for(pairs, sets, config.ks), config.confidence, config.baselines)
    probes = find_probes(runs, sets, config, progress)
    say(progress, "drawing the report")
    pictures = Pictures(data_folder(config, pairs))
    gallery = Gallery.build(board.lead, pairs, config, pictures)
    splits = tuple(dict.fromkeys(str(run.record["config"].get("train_split", "train")) for run in board.runs))
    found = Findings(
        board=board,
        pairs=pairs,
        sets=sets,
        config=config,
        duplicates=find_duplicates(splits, pairs, sets, config.duplicate_cosine),
        probes=probes,
        examples=example_groups(board.lead, gallery, config),
        pictures=pictures,
        surroundings=surroundings(started),
    )
    values = metrics(board, counts(found) | gallery.index_recall(), found.duplicates, probes)
    out, page = open_storage(config.out), build_page(found)
    _write(found, values, page, out)
    say(progress, f"wrote {out / 'report.html'}")
    return Evaluation(values, board, page, out)


def measures_for(pairs: TestPairs, sets: Sequence[ZeroShotSet], ks: Sequence[int]) -> dict[Measure, float]:
    """Return what is measured, in the order of the tables, and what random embeddings reach of it."""
    classes = {zero_shot_direction(data.name): len(data.classes) for data in sets}
    return {
        measure: chance_level(measure, pairs.captions_of, classes.get(name, 0))
        for name in (*RETRIEVAL, *classes)
        for measure in measures_of(name, ks, classes.get(name, 0))
    }


def _write(found: Findings, values: Mapping[str, Any], page: Page, out: Storage) -> None:
    out.make()
    with fresh_output(out.here) as new:
        write_tables(new, found.board, values, found.duplicates, found.probes)
        write_report(new, page)
    out.push(OWN, last=MARK)


def name_runs(runs: Sequence[AlignedRun]) -> dict[str, AlignedRun]:
    """Return runs by name: the method; where two share it, the folder's name, numbered if need be.

    Raises:
        UserError: A run is given twice.
    """
    folders = Counter(run.folder.resolve() for run in runs)
    twice = dict.fromkeys(str(run.root) for run in runs if folders[run.folder.resolve()] > 1)
    if twice:
        raise UserError(expected="each run once", found=f"{', '.join(twice)} more than once", where="runs")
    methods = Counter(run.method for run in runs)
    named: dict[str, AlignedRun] = {}
    for run in runs:
        base = name = run.method if methods[run.method] == 1 else run.root.name
        number = 2
        while name in named:
            name, number = f"{base} ({number})", number + 1
        named[name] = run
    return named


def check_cuts(ks: Sequence[int], images: int) -> None:
    """Refuse a cut-off that every answer reaches; the usual ones stay, with a caveat in the report.

    Raises:
        UserError: A cut-off is larger than the gallery of images.
    """
    if max(ks) > images and tuple(ks) != USUAL_KS:
        raise UserError(
            expected=f"cut-offs of {images} at most (the images of the split)",
            found=str(max(ks)),
            where="ks",
            remedy="ask for smaller ones: beyond the gallery every recall is 1",
        )


def open_sets(config: EvaluateConfig, image: Side) -> list[ZeroShotSet]:
    """Open the zero-shot sets: the main data set's own where it has class prompts, then the further ones."""
    paths = config.classes
    if not paths and any(image.samples.label):
        nested = tuple(open_storage(place) / CLASSES for place in config.text)
        paths = nested if all(HEADER in each.list() for each in nested) else ()
    sets = []
    if paths:
        sets.append(zero_shot_set("", image, Side.open("text", paths), config.split))
    for extra in config.zero_shot:
        stores = Side.open("image", extra.image), Side.open("text", extra.classes)
        sets.append(zero_shot_set(extra.name, *stores, extra.split))
    return sets


def counts(found: Findings) -> dict[str, Any]:
    """Return what every number stands on."""
    pairs = found.pairs.pairs
    images, captions = len(pairs.image_rows), len(pairs.caption_rows)
    table: dict[str, Any] = {
        "n": images,
        "captions": captions,
        "captions_per_image": captions / images,
        "gallery_images": images,
        "gallery_texts": captions,
        "split": found.pairs.split,
        "tie_rule": TIE_RULE,
    }
    for data in found.sets:
        prefix = f"{data.name}/" if data.name else "zero_shot_"
        table |= {f"{prefix}n": len(data.rows), f"{prefix}classes": len(data.classes)}
    return table | {
        "near_duplicate_images": found.duplicates.count(NEAR),
        "duplicate_captions": found.duplicates.count(SAME),
        "near_duplicate_cosine": found.config.duplicate_cosine,
    }


def data_folder(config: EvaluateConfig, pairs: TestPairs) -> Storage | None:
    """Return the folder that pictures come from: the one that is named, or the one that the store was made from."""
    stated = pairs.image.stores[0].manifest.provenance.get("dataset")
    if config.data is not None:
        return open_storage(config.data)
    if not isinstance(stated, str) or not stated:
        return None
    return open_recorded(stated) if is_url(stated) else open_storage(stated)


def surroundings(started: float) -> dict[str, str]:
    """Return date, versions, machine and duration of this evaluation."""
    versions = {"Python": platform.python_version()} | installed_versions(PACKAGES)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": f"{platform.system()} {platform.machine()}, {cpu_cores()} cores",
        "evaluation took": f"{time.perf_counter() - started:.1f} s",
    }
