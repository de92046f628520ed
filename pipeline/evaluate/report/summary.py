"""What is said first: the verdict, how sure it is, the large numbers, and what to know before believing them.

Caveats are looked for in the data and in the runs' own records.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.features import NEAR, SAME, Duplicates, without
from pipeline.evaluate.figures import Interval, forest
from pipeline.evaluate.leaderboard import Leaderboard, headline_names
from pipeline.evaluate.report.page import (
    Caveat,
    Findings,
    Picture,
    Tile,
    between,
    direction_name,
    measure_name,
    percent,
    plus_minus,
    signed,
)
from pipeline.evaluate.results import Measure, RunResult
from pipeline.words import count, listing

NAMED = 3
"""How many runs are named; of more the number is said."""
IMBALANCE = 3.0
SMALL = "A small test set"
FEW_IMAGES = 100
"""Test images below which every reader is warned."""
WIDE = 0.05
"""Half an interval that is a caveat whatever the number of images."""
# Their model cards list captions of COCO and Flickr30k among the training text.
CAPTION_TRAINED = ("all-minilm", "all-mpnet", "paraphrase-", "all-distilroberta")
CAPTION_SETS = ("coco", "flickr")


def verdict(board: Leaderboard) -> str:
    """Return the sentence that the report opens with."""
    lead = board.lead
    by_image, by_text = (percent(lead.mean(name)) for name in headline_names(board.k))
    place = "first" if board.k == 1 else f"among the first {board.k}"
    found = (
        f"a right caption {place} for {by_image} % of images and the right image {place} for {by_text} % of captions"
    )
    if len(board.runs) == 1:
        return f"{lead.name} puts {found}."
    against, left = board.held_against(lead), board.not_beaten(lead)
    if not against:
        ahead = f"{percent(board.gap(lead, board.runs[1]).value)} points ahead of {board.runs[1].name}"
        return f"{lead.name} comes first, {ahead}: it puts {found}."
    if left:
        names = listing([run.name for run in left])
        return (
            f"No clear winner: {lead.name} comes first, but its lead over {names} is not significant. It puts {found}."
        )
    beaten = listing([_called(title, runs) for title, runs in against.items()])
    return f"{lead.name} beats {beaten}: it puts {found}."


def _called(title: str, runs: Sequence[RunResult]) -> str:
    """Return what the runs of a baseline are called: by their names where these are few."""
    return listing([run.name for run in runs]) if len(runs) <= NAMED else f"{title} ({len(runs)})"


def reasons(board: Leaderboard, images: int, captions: int) -> tuple[str, ...]:
    """Return the sentences under the verdict: how sure, against what, and what was declared beforehand."""
    found = [_how_sure(board, images, captions), *_others(board), declared(board), _by_measure(board)]
    return tuple(sentence for sentence in found if sentence)


def _how_sure(board: Leaderboard, images: int, captions: int) -> str:
    ground = f"{count(images, 'test image')} with {count(captions, 'caption')}"
    if len(board.runs) == 1:
        value, (low, high) = board.value(board.lead), board.interval(board.lead)
        level = f"{100 * board.confidence:.0f} %"
        chance = sum(board.chance[name] for name in headline_names(board.k)) / 2
        factor = f"{value / chance:,.0f} times chance" if chance else "chance is nil"
        return f"On {ground}: the mean of both is {percent(value)} ({level} interval {between(low, high)}), {factor}."
    against = board.held_against(board.lead)
    nearest = {runs[0].name: runs[0] for runs in against.values()} or {board.runs[1].name: board.runs[1]}
    leads = "; ".join(_lead_over(board, rival) for rival in nearest.values())
    rest = "" if against else " No run of a baseline is here: this comparison is descriptive."
    return f"Its lead on the mean of both directions, query by query on {ground}: {leads}.{rest}"


def _lead_over(board: Leaderboard, rival: RunResult) -> str:
    gap, error = board.gap(board.lead, rival), board.seed_error(board.lead, rival)
    over_seeds = f", standard error over seeds {percent(error)}" if error else ""
    return (
        f"{signed(gap.value)} points over {rival.name} (interval {signed(gap.low)} to {signed(gap.high)}, "
        f"p = {gap.p_value:.3f}{over_seeds})"
    )


def declared(board: Leaderboard) -> str:
    """Say what is tested, how it is corrected, and that all else only describes; nothing for a single run."""
    if len(board.runs) < 2:
        return ""
    names = [
        f"{each.title} ({listing([run.name for run in each.runs]) or 'none here'})"
        if [run.name for run in each.runs] != [each.title]
        else each.title
        for each in board.baselines
    ]
    correction = "need no correction"
    if board.tests > 1:
        correction = f"are corrected for these {board.tests} by Bonferroni's method, whatever else stands on this page"
    return (
        f"Declared beforehand: every run is tested against {listing(names)}, all runs of each, on the mean of both "
        f"directions; {100 * board.confidence:.0f} % intervals and p of differences {correction}. All other "
        "comparisons only describe."
    )


def _by_measure(board: Leaderboard) -> str:
    """Say who is best in each direction and in zero-shot: often not one and the same."""
    if len(board.runs) < 2:
        return ""
    names = headline_names(board.k)
    parts = []
    for measure in board.measures:
        if measure.name in names or measure.name.endswith("acc1"):
            best = board.ranking(measure.name)[0]
            parts.append(f"{measure_name(measure)} {best.name} with {percent(best.mean(measure.name))} %")
    return f"The highest in each: {'; '.join(parts)}."


def _others(board: Leaderboard) -> Iterator[str]:
    """Say of the runs behind the first how each stands against each baseline."""
    for each in board.baselines:
        runs = [run for run in board.runs[1:] if run.name not in {rival.name for rival in each.runs}]
        if not each.runs or not runs:
            continue
        better = [run.name for run in runs if all(board.settled(run, rival) for rival in each.runs)]
        worse = [run.name for run in runs if all(board.settled(rival, run) for rival in each.runs)]
        even = [run.name for run in runs if run.name not in (*better, *worse)]
        whom = "all of them" if len(each.runs) > 1 else "it"
        said = (
            (better, _verb(better, "beat"), f" {whom} significantly"),
            (even, _verb(even, "do", "does"), " not" if better else f" not beat {whom} significantly"),
            (worse, _verb(worse, "stay"), f" below {whom}"),
        )
        parts = "; ".join(f"{listing(names)} {verb}{rest}" for names, verb, rest in said if names)
        yield f"The other runs against {_called(each.title, each.runs)}: {parts}."


def _verb(names: Sequence[str], plural: str, singular: str = "") -> str:
    return plural if len(names) > 1 else singular or f"{plural}s"


def tiles(board: Leaderboard) -> tuple[Tile, ...]:
    """Return the large numbers of the best run."""
    chosen = [measure for name in headline_names(board.k) for measure in board.measures if measure.name == name]
    chosen += [measure for measure in board.measures if measure.name.endswith("acc1")][:2]
    return tuple(_tile(board, measure) for measure in chosen)


def _tile(board: Leaderboard, measure: Measure) -> Tile:
    run = board.lead
    low, high = board.interval(run, measure.name)
    return Tile(
        label=measure_name(measure) if len(board.runs) == 1 else f"{run.name}, {measure_name(measure)}",
        value=f"{percent(run.mean(measure.name))} %",
        spread=plus_minus(run.deviation(measure.name)),
        note=f"{between(low, high)}, chance {percent(board.chance[measure.name])}",
    )


def forest_picture(board: Leaderboard) -> Picture | None:
    """Return the figure of the first screen; none for a single run."""
    if len(board.runs) < 2:
        return None
    rows = []
    for run in board.runs:
        value, (low, high) = board.value(run), board.interval(run)
        rows.append(Interval(name=run.name, role=board.role(run), value=value, low=low, high=high))
    chance = sum(board.chance[name] for name in headline_names(board.k)) / 2
    meaning = {
        "lead": "blue is the best run",
        "rival": "orange the plain contrastive baseline",
        "closed": f"green the best {'without training' if board.lead.trained else 'of the trained'}",
    }
    shown = [text for role, text in meaning.items() if role in {row.role for row in rows}]
    caption = (
        f"Dot: mean over seeds. Line: {100 * board.confidence:.0f} % interval over test images, "
        f"{queries_asked(board)}. Of the colours, {listing(shown)}."
    )
    return Picture(svg=forest(rows, chance, f"R@{board.k}, mean of both directions"), caption=caption)


def queries_asked(board: Leaderboard) -> str:
    """Return how many queries the numbers of each direction stand on."""
    order = dict.fromkeys(measure.direction for measure in board.measures)
    return "n = " + ", ".join(f"{len(board.lead.answers[name].queries.ids):,} {direction_name(name)}" for name in order)


def find_caveats(found: Findings) -> tuple[Caveat, ...]:
    """Return all caveats, the gravest first."""
    board, config, images = found.board, found.config, len(found.pairs.pairs.image_rows)
    return (
        *split_caveats(board.runs, found.pairs.split),
        *duplicate_caveats(board, found.duplicates, config.duplicate_cosine),
        *cut_off_caveats(config.ks, images),
        *small_set_caveats(board, images),
        *seed_caveats(board),
        *text_encoder_caveats(found.pairs),
        *(caveat for data in found.sets for caveat in class_caveats(data)),
        *(Caveat(title="Note", text=note) for note in config.notes),
    )


def split_caveats(runs: Sequence[RunResult], split: str) -> Iterator[Caveat]:
    """Say so where the evaluated split was trained on, or where layers or steps were chosen on it."""
    for use, key in (("trained on it", "train_split"), ("chose their best step on it", "validation_split")):
        guilty = [run.name for run in runs if run.record.get("config", {}).get(key) == split]
        if guilty:
            text = f"{listing(guilty)} {use}. Their numbers say nothing about new data."
            yield Caveat(title=f"The split {split} was not held out", text=text, grave=True)
    seen = [run.name for run in runs if split in _unpaired_splits(run)]
    if seen:
        text = f"{listing(seen)} had its images or texts, without their pairing, in training: transductive."
        yield Caveat(title=f"The split {split} was seen without its pairs", text=text, grave=True)
    other = [run.name for run in runs if not _layers_from_training(run)]
    if other:
        text = f"The layers of {listing(other)} were chosen on another split than train."
        yield Caveat(title="Layers chosen outside the training split", text=text, grave=True)


def _unpaired_splits(run: RunResult) -> set[str]:
    """Return the splits beside the training split whose unpaired rows a seed was made with."""
    entries = [entry.get("unpaired") or {} for entry in run.record.get("seeds", ()) if isinstance(entry, dict)]
    used = [entry.get("rows", {}) for entry in entries if entry.get("rounds")]
    return {name for rows in used for name in rows.get("other_splits", ())}


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
            value = without(measure, run.answers[measure.direction].queries, touched)
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
    """Say so where there are few images, where the best run's interval is wide, or its lead is within the noise."""
    low, high = board.interval(board.lead)
    level = f"{100 * board.confidence:.0f} %"
    known = (
        f"With {count(images, 'test image')} the mean of both directions of {board.lead.name} is known to lie between "
        f"{percent(low)} and {percent(high)} ({level} interval)"
    )
    left = [run for run in board.not_beaten(board.lead) if not board.apart(board.lead, run)]
    if left:
        gap = board.gap(board.lead, left[0]).value
        text = (
            f"{known}, and its lead over {left[0].name} is {percent(abs(gap))} points. More test images, not more "
            "decimals, would settle it."
        )
        yield Caveat(title=f"{SMALL}, too small to tell {board.lead.name} from {left[0].name}", text=text)
    elif images < FEW_IMAGES or (high - low) / 2 > WIDE:
        few = " Other images of the same kind could turn the order of runs round." if len(board.runs) > 1 else ""
        yield Caveat(title=SMALL, text=f"{known}.{few}")


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
