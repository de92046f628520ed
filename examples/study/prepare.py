"""What a study needs before its cells: features of every data set and encoder, and captions with words changed.

Only what is missing is made; a finished store is taken as it is.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from examples.study.config import StudyConfig, change_slug, encoders_of
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.run import ExtractResult, extract
from pipeline.progress import Progress, say
from pipeline.storage.local import open_storage
from pipeline.store.manifest import MANIFEST
from pipeline.store.reader import require_finished

SEED = 0
Extraction = Callable[[ExtractConfig], ExtractResult]
"""What makes one store: `extract`, or what does the same elsewhere."""


def missing_stores(config: StudyConfig, data: Path, out: Path) -> list[ExtractConfig]:
    """Return the extractions that the study still needs; the data set's own come before those of changed captions."""
    wanted = [*_stores(config, data), *_changed(config, data, out)]
    return [each for each in wanted if not _finished(each)]


def prepare(config: StudyConfig, data: Path, out: Path, progress: Progress, extraction: Extraction = extract) -> None:
    """Make every store that is missing.

    Raises:
        UserError: A data set is not there, or an encoder cannot be loaded.
        PipelineError: As `extract`.
    """
    for kind, share in _changes(config):
        folder = out / "changed" / "0_raw" / change_slug(kind, share)
        write_changed_captions(data / "0_raw" / config.dataset, folder, kind, share, config.split)
    for each in missing_stores(config, data, out):
        say(progress, f"Extracting {open_storage(each.dataset).name} with {each.encoder}.")
        say(progress, extraction(each).sentence())


def _stores(config: StudyConfig, data: Path) -> Iterator[ExtractConfig]:
    for encoder, modality in encoders_of(config).items():
        for dataset in (config.dataset, *config.zero_shot):
            texts = {} if modality == "image" or dataset == config.dataset else {"texts": "classes"}
            yield _extraction(config, encoder, data / "0_raw" / dataset, data / "1_features" / dataset / encoder, texts)


def _changed(config: StudyConfig, data: Path, out: Path) -> Iterator[ExtractConfig]:
    encoders = dict.fromkeys(
        encoder
        for grid in config.grids.values()
        if grid.changes
        for pair in grid.encoders
        for encoder in pair[1].split("+")
    )
    for kind, share in _changes(config):
        name = change_slug(kind, share)
        for encoder in encoders:
            store = out / "changed" / "1_features" / name / encoder
            yield _extraction(config, encoder, out / "changed" / "0_raw" / name, store, {"texts": "captions"})


def _changes(config: StudyConfig) -> list[tuple[str, float]]:
    return list(dict.fromkeys(change for grid in config.grids.values() for change in grid.changes))


def _extraction(config: StudyConfig, encoder: str, dataset: Path, out: Path, more: Mapping[str, str]) -> ExtractConfig:
    spec = config.encoders[encoder]
    own = dict(spec) if isinstance(spec, Mapping) else {"encoder": spec}
    where = f"encoders.{encoder}"
    return build(ExtractConfig, {**own, **more, "dataset": dataset, "out": out}, where=where)


def _finished(config: ExtractConfig) -> bool:
    out = open_storage(config.out)
    root = out / "classes" if config.texts == "classes" else out
    if MANIFEST in root.list():
        require_finished(root)
        return True
    return False


def drop_words(caption: str, share: float, generator: np.random.Generator) -> str:
    """Return a caption without a share of its words; one word at least stays, and one at least goes where two are."""
    words = caption.split()
    gone = min(max(round(share * len(words)), 1), len(words) - 1)
    kept = np.sort(generator.permutation(len(words))[gone:]) if gone > 0 else np.arange(len(words))
    return " ".join(words[place] for place in kept)


def shuffle_words(caption: str, share: float, generator: np.random.Generator) -> str:
    """Return a caption with a share of its words (two at least) moved among their places."""
    words = caption.split()
    chosen = generator.permutation(len(words))[: min(max(round(share * len(words)), 2), len(words))]
    for place, source in zip(chosen, np.roll(chosen, 1), strict=True):
        words[place] = caption.split()[source]
    return " ".join(words)


CHANGES = {"drop": drop_words, "shuffle": shuffle_words}
"""Changes of captions by name."""


def write_changed_captions(source: Path, folder: Path, kind: str, share: float, split: str) -> None:
    """Write a raw data set: the first caption of every image of a split, its words dropped or shuffled.

    Ids are those of the captions unchanged. What is there already is left as it is.

    Args:
        source: The raw data set.
        folder: The new data set's folder.
        kind: drop or shuffle.
        share: Share of the words.
        split: Split whose captions are changed.

    Raises:
        UserError: The data set is not there or has no captions in that split.
    """
    target = folder / "captions.csv"
    if target.is_file():
        return
    generator = np.random.default_rng((SEED, round(1000 * share), sorted(CHANGES).index(kind)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("caption_id", "caption"))
    first = list(_first_captions(open_dataset(source), split))
    if not first:
        raise UserError(expected=f"captions of images in split {split}", found="none", where=str(source))
    writer.writerows((name, CHANGES[kind](caption, share, generator)) for name, caption in first)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(target)


def _first_captions(dataset: RawDataset, split: str) -> Iterator[tuple[str, str]]:
    chosen = {row.image_id for row in dataset.images if row.split == split}
    for row in dataset.captions:
        if row.image_id in chosen:
            chosen.discard(row.image_id)
            yield row.caption_id, row.caption
