"""What is said first: the verdict, how sure it is, the large numbers, and what to know before believing them.

Caveats are looked for in the data and in the runs' own records.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.features import NEAR, SAME, Duplicates, without
from pipeline.evaluate.figures import Interval, forest
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
from pipeline.evaluate.results import Leaderboard, Measure, RunResult, headline_names
from pipeline.words import count, listing

NAMED = 3
"""How many runs are named; of more the number is said."""
IMBALANCE = 3.0
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
    second = board.runs[1]
    ahead = f"{percent(board.gap(lead, second).value)} points ahead of {second.name}"
    rivals = board.rivals()
    if not rivals:
        return f"{lead.name} wins on the mean of both directions, {ahead}: it puts {found}."
    return f"No clear winner: {lead.name} is {ahead}, but {_not_beaten(rivals, board)}. {lead.name} puts {found}."


def reasons(board: Leaderboard, images: int, captions: int) -> tuple[str, ...]:
    """Return the sentences under the verdict: how sure, against what, and against which baselines."""
    found = [_how_sure(board, images, captions), _by_measure(board), *_baselines(board)]
    return tuple(sentence for sentence in found if sentence)


def _how_sure(board: Leaderboard, images: int, captions: int) -> str:
    ground = f"{count(images, 'test image')} with {count(captions, 'caption')}"
    value, (low, high) = board.value(board.lead), board.interval(board.lead)
    level = f"{100 * board.confidence:.0f} %"
    if len(board.runs) == 1:
        chance = sum(board.chance[name] for name in headline_names(board.k)) / 2
        factor = f"{value / chance:,.0f} times chance" if chance else "chance is nil"
        return f"On {ground}: the mean of both is {percent(value)} ({level} interval {between(low, high)}), {factor}."
    gap = board.gap(board.runs[0], board.runs[1])
    sure = f"{level} interval {signed(gap.low)} to {signed(gap.high)}"
    pairs = len(board.runs) * (len(board.runs) - 1) // 2
    if pairs > 1:
        margin = board.margin(board.runs[0], board.runs[1])
        sure += f" alone, {signed(gap.value - margin)} to {signed(gap.value + margin)} among all {pairs} pairs of runs"
    lead = f"{signed(gap.value)} points on the mean of both directions, {sure}"
    error = board.seed_error(board.runs[0], board.runs[1])
    over_seeds = f" Over seeds its standard error is {percent(error)} points." if error else ""
    return f"The lead: {lead}, paired query by query on {ground}.{over_seeds}"


def _by_measure(board: Leaderboard) -> str:
    """Say who is best in each direction and in zero-shot: often not one and the same."""
    if len(board.runs) < 2:
        return ""
    names = headline_names(board.k)
    parts = []
    for measure in board.measures:
        if measure.name in names or measure.name.endswith("acc1"):
            best, rivals = board.ranking(measure.name)[0], board.rivals(measure.name)
            rest = _not_beaten(rivals, board) if rivals else "ahead of every other run"
            parts.append(f"{measure_name(measure)} {best.name} with {percent(best.mean(measure.name))} % ({rest})")
    return f"The best in each: {'; '.join(parts)}."


def _not_beaten(rivals: Sequence[RunResult], board: Leaderboard) -> str:
    """Say over which runs the best one's lead is not significant."""
    others = len(board.runs) - 1
    if len(rivals) <= NAMED:
        return f"its lead over {listing([run.name for run in rivals])} is not significant"
    if len(rivals) == others:
        return f"its lead over none of the other {others} is significant"
    return f"its lead over {len(rivals)} of the other {others} is not significant"


def _baselines(board: Leaderboard) -> Iterator[str]:
    closed, baseline = board.best_closed, board.baseline
    trained = [run for run in board.runs if run.trained]
    if closed is not None and trained:
        yield _against_closed(trained, closed, board)
    others = [run for run in trained if run is not baseline]
    if baseline is not None and others:
        better = [run.name for run in others if board.settled(run, baseline)]
        beaten = f"{listing(better)} {'beats' if len(better) == 1 else 'beat'} it" if better else "none beats it"
        yield f"Of the other trained losses, against plain {baseline.name}: {beaten} significantly."


def _against_closed(trained: list[RunResult], closed: RunResult, board: Leaderboard) -> str:
    better = [run.name for run in trained if board.settled(run, closed)]
    worse = [run.name for run in trained if board.settled(closed, run)]
    even = [run.name for run in trained if run.name not in (*better, *worse)]
    rest = [f"the difference from {listing(even)} is not significant"] if even else []
    rest += [f"{listing(worse)} {'stays' if len(worse) == 1 else 'stay'} below"] if worse else []
    ending = f"; {'; '.join(rest)}." if rest else "."
    if not better:
        return f"No trained loss beats {closed.name}, which needs no training{ending}"
    return f"{listing(better)} {'beats' if len(better) == 1 else 'beat'} {closed.name}, the best closed form{ending}"


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
    other = [run.name for run in runs if not _layers_from_training(run)]
    if other:
        text = f"The layers of {listing(other)} were chosen on another split than train."
        yield Caveat(title="Layers chosen outside the training split", text=text, grave=True)


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
