"""What a reader must know before believing a number: looked for in the data and in the runs' own records."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.duplicates import NEAR, SAME, Duplicates, without
from pipeline.evaluate.leaderboard import Leaderboard, headline_names
from pipeline.evaluate.report.page import Caveat, measure_name, percent
from pipeline.evaluate.single import RunResult
from pipeline.words import count, listing

IMBALANCE = 3.0
# Their model cards list captions of COCO and Flickr30k among the training text.
CAPTION_TRAINED = ("all-minilm", "all-mpnet", "paraphrase-", "all-distilroberta")
CAPTION_SETS = ("coco", "flickr")


def find_caveats(
    board: Leaderboard, pairs: TestPairs, sets: Sequence[ZeroShotSet], config: EvaluateConfig, duplicates: Duplicates
) -> tuple[Caveat, ...]:
    """Return all caveats, the gravest first."""
    images = len(pairs.pairs.image_rows)
    return (
        *split_caveats(board.runs, pairs.split),
        *duplicate_caveats(board, duplicates, config.duplicate_cosine),
        *cut_off_caveats(config.ks, images),
        *small_set_caveats(board, images),
        *seed_caveats(board),
        *text_encoder_caveats(pairs),
        *(caveat for data in sets for caveat in class_caveats(data)),
        *(Caveat(title="Note", text=note) for note in config.notes),
    )


def split_caveats(runs: Sequence[RunResult], split: str) -> Iterator[Caveat]:
    """Say so where the evaluated split was trained on, or where layers or steps were chosen on it."""
    for use, key in (("trained on it", "train_split"), ("chose their best step on it", "validation_split")):
        guilty = [run.name for run in runs if run.record.get("config", {}).get(key) == split]
        if guilty:
            text = f"{listing(guilty)} {use}. Their numbers say nothing about new data."
            yield Caveat(title=f"The split {split} was not held out", text=text)
    other = [run.name for run in runs if not _layers_from_training(run)]
    if other:
        text = f"The layers of {listing(other)} were chosen on another split than train."
        yield Caveat(title="Layers chosen outside the training split", text=text)


def _layers_from_training(run: RunResult) -> bool:
    trained_on = run.record.get("config", {}).get("train_split", "train")
    return not run.layer_pairs or run.layer_pairs.get("split", trained_on) in (trained_on, "", "train")


def duplicate_caveats(board: Leaderboard, found: Duplicates, threshold: float) -> Iterator[Caveat]:
    """Say so where test images are nearly training images, or test captions stand in the training split."""
    near, same = found.count(NEAR), found.count(SAME)
    if near:
        text = (
            f"{count(near, 'test image')} {'has' if near == 1 else 'have'} a training image with a cosine above "
            f"{threshold:g} in the centred frozen features{_without(board, found, NEAR)}"
        )
        yield Caveat(title="Near-duplicates between train and test", text=text)
    if same:
        verb = "stands" if same == 1 else "stand"
        text = f"{count(same, 'test caption')} {verb} in the training split word for word{_without(board, found, SAME)}"
        yield Caveat(title="Captions of the test set in training", text=text)
    for name in dict.fromkeys(twin.set for twin in found.twins if twin.set):
        text = f"{count(found.count(NEAR, name), 'image')} of {name} are nearly training images of the runs."
        yield Caveat(title=f"{name} has pictures of the training split", text=text)


def _without(board: Leaderboard, found: Duplicates, kind: str) -> str:
    """Say what leaving the touched queries out does to the best run."""
    run, parts = board.lead, []
    for measure in board.measures:
        if measure.name in headline_names(board.k) and (touched := found.touched[kind].get(measure.direction)):
            value = without(measure, run.queries[measure.direction], touched)
            left = "nothing is left" if value is None else f"{percent(run.mean(measure.name))} becomes {percent(value)}"
            parts.append(f"{measure_name(measure)} {left}")
    changed = f" Without them, {run.name}: {', '.join(parts)}." if parts else ""
    return f". They may be remembered, not understood.{changed}"


def cut_off_caveats(ks: Sequence[int], images: int) -> Iterator[Caveat]:
    """Say so where a cut-off is no smaller than the gallery: then every answer is right."""
    idle = [f"R@{k}" for k in ks if k >= images]
    if idle:
        text = f"With {count(images, 'test image')} text→image {listing(idle)} is 100 % whatever the model."
        yield Caveat(title="Cut-offs beyond the gallery", text=text)


def small_set_caveats(board: Leaderboard, images: int) -> Iterator[Caveat]:
    """Say so where the interval of the best run is wider than the differences that the report speaks of."""
    low, high = board.interval(board.lead)
    known = f"With {count(images, 'test image')} {{}} number is known to ± {percent((high - low) / 2)} points"
    if len(board.runs) > 1 and not board.apart(board.runs[0], board.runs[1]):
        gap = board.gap(board.runs[0], board.runs[1]).value
        text = (
            f"{known.format('a')}, and the first two runs differ by {percent(abs(gap))}. More test images, not more "
            "decimals, would settle it."
        )
        yield Caveat(title="The test set is too small to tell the first two apart", text=text)
    elif (high - low) / 2 > 0.05:
        yield Caveat(title="A small test set", text=f"{known.format('every')} only.")


def seed_caveats(board: Leaderboard) -> Iterator[Caveat]:
    """Say so where a trained run stands on one seed, or where the lead is no larger than the spread over seeds."""
    lead, second = board.runs[0], board.runs[1] if len(board.runs) > 1 else None
    if second is not None:
        gap, error = board.gap(lead, second).value, board.seed_error(lead, second)
        if error and gap <= 2 * error:
            text = (
                f"{lead.name} leads {second.name} by {percent(gap)} points; the standard error of that lead over "
                f"seeds is {percent(error)}. Other seeds could turn the order round."
            )
            yield Caveat(title="The lead is within the spread over seeds", text=text)
            return
    single = [run.name for run in board.runs if run.trained and len(run.seeds) < 2]
    if single:
        text = f"{listing(single)}: one seed does not show whether a result is merit or luck in training."
        yield Caveat(title="One seed", text=text)


def text_encoder_caveats(pairs: TestPairs) -> Iterator[Caveat]:
    """Say so where the sentence encoder was trained on captions of the same family as the test set."""
    about = " ".join(str(store.manifest.provenance.get("dataset", "")) for store in pairs.image.stores).lower()
    specs = [str(store.manifest.provenance.get("spec", "")) for store in pairs.text.stores]
    guilty = [spec for spec in specs if any(name in spec.lower() for name in CAPTION_TRAINED)]
    if guilty and any(name in about for name in CAPTION_SETS):
        text = f"The text encoder {listing(guilty)} was trained on captions of COCO and Flickr30k, says its model card."
        yield Caveat(title="The text encoder knows captions of this kind", text=text)


def class_caveats(data: ZeroShotSet) -> Iterator[Caveat]:
    """Say so where classes are of very different sizes, or images without a label were left out."""
    sizes = Counter(data.labels).most_common()
    (large, most), (small, least) = sizes[0], sizes[-1]
    name = data.name or "the main data set"
    if most > IMBALANCE * least:
        text = (
            f"In {name} class {large!r} has {count(most, 'test image')} and {small!r} has {least:,}: read the "
            "per-class recall beside the accuracy."
        )
        yield Caveat(title="Unequal classes", text=text)
    if data.unlabelled:
        text = f"{count(data.unlabelled, 'image')} of {name} without a label are left out of zero-shot."
        yield Caveat(title="Images without a label", text=text)
