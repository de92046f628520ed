"""What a reader must know before believing a number: looked for in the data and in the runs' own records."""

from collections import Counter
from collections.abc import Sequence

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
    summary: Leaderboard, pairs: TestPairs, sets: Sequence[ZeroShotSet], config: EvaluateConfig, duplicates: Duplicates
) -> tuple[Caveat, ...]:
    """Return all caveats, the gravest first."""
    found = [
        *split_caveats(summary.runs, pairs.split),
        *duplicate_caveat(summary, duplicates, config.duplicate_cosine),
        *cut_off_caveat(config.ks, len(pairs.pairs.image_rows)),
        *small_set_caveat(summary, len(pairs.pairs.image_rows)),
        *seed_caveat(summary),
        *text_encoder_caveat(pairs),
        *(caveat for data in sets for caveat in class_caveats(data)),
    ]
    return (*found, *(Caveat(title="Note", text=note) for note in config.notes))


def split_caveats(runs: Sequence[RunResult], split: str) -> list[Caveat]:
    """Say so where the evaluated split was trained on, or where layers or steps were chosen on it."""
    found = []
    for use, key in (("trained on it", "train_split"), ("chose their best step on it", "validation_split")):
        guilty = [run.name for run in runs if run.record.get("config", {}).get(key) == split]
        if guilty:
            text = f"{listing(guilty)} {use}. Their numbers say nothing about new data."
            found.append(Caveat(title=f"The split {split} was not held out", text=text))
    other = [run.name for run in runs if _layer_split(run) not in ("", "train")]
    if other:
        text = f"The layers of {listing(other)} were chosen on another split than train."
        found.append(Caveat(title="Layers chosen outside the training split", text=text))
    return found


def _layer_split(run: RunResult) -> str:
    if not run.layer_pairs:
        return ""
    config = run.record.get("config", {})
    stated = run.layer_pairs.get("split", config.get("train_split", "train"))
    return "train" if stated == config.get("train_split", "train") else str(stated)


def duplicate_caveat(summary: Leaderboard, found: Duplicates, threshold: float) -> list[Caveat]:
    """Say so where test images are nearly training images, or test captions stand in the training split."""
    near, same = found.count(NEAR), found.count(SAME)
    run = summary.lead
    caveats = []
    for kind, number, what in (
        (
            NEAR,
            near,
            f"{count(near, 'test image')} {'has' if near == 1 else 'have'} a training image with a cosine above "
            f"{threshold:g} in the centred frozen features",
        ),
        (
            SAME,
            same,
            f"{count(same, 'test caption')} {'stands' if same == 1 else 'stand'} in the training split word for word",
        ),
    ):
        if number:
            text = f"{what}. They may be remembered, not understood.{_without(run, summary, found, kind)}"
            title = "Near-duplicates between train and test" if kind == NEAR else "Captions of the test set in training"
            caveats.append(Caveat(title=title, text=text))
    for name in dict.fromkeys(twin.set for twin in found.twins if twin.set):
        text = f"{count(found.count(NEAR, name), 'image')} of {name} are nearly training images of the runs."
        caveats.append(Caveat(title=f"{name} has pictures of the training split", text=text))
    return caveats


def _without(run: RunResult, summary: Leaderboard, found: Duplicates, kind: str) -> str:
    """Say what leaving the touched queries out does to the best run."""
    parts = []
    for measure in summary.measures:
        if measure.name in headline_names(summary.k) and (touched := found.touched[kind].get(measure.direction)):
            value = without(measure, run.queries[measure.direction], touched)
            left = "nothing is left" if value is None else f"{percent(run.mean(measure.name))} becomes {percent(value)}"
            parts.append(f"{measure_name(measure)} {left}")
    return f" Without them, {run.name}: {', '.join(parts)}." if parts else ""


def cut_off_caveat(ks: Sequence[int], images: int) -> list[Caveat]:
    """Say so where a cut-off is no smaller than the gallery: then every answer is right."""
    idle = [f"R@{k}" for k in ks if k >= images]
    if not idle:
        return []
    text = f"With {count(images, 'test image')} text→image {listing(idle)} is 100 % whatever the model."
    return [Caveat(title="Cut-offs beyond the gallery", text=text)]


def small_set_caveat(summary: Leaderboard, images: int) -> list[Caveat]:
    """Say so where the interval of the best run is wider than the differences that the report speaks of."""
    _, low, high = summary.headline(summary.lead)
    half = (high - low) / 2
    if len(summary.runs) > 1:
        lead = summary.gap(summary.runs[0], summary.runs[1])
        if not summary.apart(summary.runs[0], summary.runs[1]):
            text = (
                f"With {count(images, 'test image')} a number is known to ± {percent(half)} points, and the first two "
                f"runs differ by {percent(abs(lead.value))}. More test images, not more decimals, would settle it."
            )
            return [Caveat(title="The test set is too small to tell the first two apart", text=text)]
    if half > 0.05:
        text = f"With {count(images, 'test image')} every number is known to ± {percent(half)} points only."
        return [Caveat(title="A small test set", text=text)]
    return []


def seed_caveat(summary: Leaderboard) -> list[Caveat]:
    """Say so where a trained run stands on one seed, or where the lead is no larger than the spread over seeds."""
    runs = summary.runs
    if len(runs) > 1:
        gap, error = summary.gap(runs[0], runs[1]).value, summary.seed_error(runs[0], runs[1])
        if error and gap <= 2 * error:
            text = (
                f"{runs[0].name} leads {runs[1].name} by {percent(gap)} points; the standard error of that lead over "
                f"seeds is {percent(error)}. Other seeds could turn the order round."
            )
            return [Caveat(title="The lead is within the spread over seeds", text=text)]
    single = [run.name for run in runs if run.trained and len(run.seeds) < 2]
    if not single:
        return []
    text = f"{listing(single)}: with one seed, luck in training cannot be told from merit."
    return [Caveat(title="One seed", text=text)]


def text_encoder_caveat(pairs: TestPairs) -> list[Caveat]:
    """Say so where the sentence encoder was trained on captions of the same family as the test set."""
    about = " ".join(str(store.manifest.provenance.get("dataset", "")) for store in pairs.image.stores).lower()
    specs = [str(store.manifest.provenance.get("spec", "")) for store in pairs.text.stores]
    guilty = [spec for spec in specs if any(name in spec.lower() for name in CAPTION_TRAINED)]
    if not guilty or not any(name in about for name in CAPTION_SETS):
        return []
    text = f"The text encoder {listing(guilty)} was trained on captions of COCO and Flickr30k, as its model card says."
    return [Caveat(title="The text encoder knows captions of this kind", text=text)]


def class_caveats(data: ZeroShotSet) -> list[Caveat]:
    """Say so where classes are of very different sizes, or images without a label were left out."""
    found = []
    sizes: Counter[str] = Counter(data.labels)
    (large, most), (small, least) = sizes.most_common()[0], sizes.most_common()[-1]
    name = data.name or "the main data set"
    if most > IMBALANCE * least:
        text = (
            f"In {name} class {large!r} has {count(most, 'test image')} and {small!r} has {least:,}: read the "
            "per-class recall beside the accuracy."
        )
        found.append(Caveat(title="Unequal classes", text=text))
    if data.unlabelled:
        text = f"{count(data.unlabelled, 'image')} of {name} without a label are left out of zero-shot."
        found.append(Caveat(title="Images without a label", text=text))
    return found
