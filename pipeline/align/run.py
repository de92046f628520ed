"""The align stage: stores in, a run folder out. Run by `pipeline align` and `stages/align.py`.

path = align(AlignConfig(image=(…,), text=(…,), out=…, method="combined"), progress=print)

A seed that is finished with the same settings and the same features is not done again; an interrupted one is: a digest
of all that a seed depends on is kept beside its projectors, in `seed-<s>/seed.json`, which is written last.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.align.config import AlignConfig
from pipeline.align.fit import Trained, corrected, fit_untrained, initial_projectors, measured, selection_score
from pipeline.align.layer_choice import ChosenLayers, choose_layers, label
from pipeline.align.layer_scores import LayerScores
from pipeline.align.loggers import LoggedSeed, log_seeds, need_logger
from pipeline.align.pairs import Layers, PairFeatures, Splits, draw, split_pairs
from pipeline.align.pool import Pool, PoolRows, pool_rows
from pipeline.align.recipe import Recipe, with_rate
from pipeline.align.train import find_learning_rate, train
from pipeline.errors import UserError
from pipeline.files import dump_signed, read_lines, read_signed, spaced_json_digest, write_atomically
from pipeline.layers import LayerRef
from pipeline.progress import Progress, say, silent
from pipeline.projectors.run_record import RUN_FILES, SIDES, AlignedRun, SeedRecord, fill, save_projector
from pipeline.runtime import installed_version, resolve_device
from pipeline.settings import declared
from pipeline.storage.contract import Storage
from pipeline.storage.local import open_storage
from pipeline.store.views import Side
from pipeline.words import count

REVISION = 3
"""Raised whenever the same settings would give other projectors: finished seeds of older code are then redone."""

PACKAGES = ("fewpairs", "torch", "numpy")
LAYER_FILE = "layer_pairs.json"


def align(config: AlignConfig, progress: Progress = silent) -> Path:
    """Choose layers, make projectors for every seed, and write the run; return its folder on this machine.

    `run.json` is written last and taken away first: a folder that holds one is a whole run of one configuration.

    Args:
        config: What to align, how.
        progress: Gets a sentence for each thing done, reused or decided.

    Raises:
        UserError: Stores that cannot be used, too few pairs, features that are not finite or constant, settings, a
            logger that is not installed; the folder holds another run and `replace` is not set, or no run but files.
        PipelineError: The loss is no longer finite, or the logger failed.
    """
    if config.log_to:
        need_logger(config.log_to)
    resolve_device(config.device)  # before the work: a device that is not there is told at once
    out = open_storage(config.out)
    out.pull(RUN_FILES)
    sides = Side.open("image", config.image), Side.open("text", config.text)
    if not config.replace:
        refuse_another(config, sides, out)
    splits = split_pairs(*sides, config, progress)
    chosen = _choose_layers(sides, splits, config, out.here, progress)
    names = [
        f"{side.modality} layer{'s' if len(layers) > 1 else ''} {label(side, layers)}"
        for side, layers in zip(sides, (chosen.image, chosen.text), strict=True)
    ]
    say(
        progress,
        f"Aligning {names[0]} with {names[1]}: "
        f"{config.pairs or len(splits.train)} training images, {len(splits.validation)} for validation.",
    )
    if config.names_unpaired and not config.uses_unpaired:
        say(progress, f"{config.method} takes no unpaired images and texts: they are left alone.")
    results = _fit_seeds(config, sides, (chosen.image, chosen.text), splits, out, progress)
    AlignedRun.write(out, record_of(config, sides, chosen, splits, results))
    if config.log_to:
        logged = [logged_seed(config, out, result.record["seed"]) for result in results]
        say(progress, f"Logged: {log_seeds(config.log_to, out.here, logged)}.")
    return out.here


def refuse_another(config: AlignConfig, sides: tuple[Side, Side], out: Storage) -> None:
    """Refuse a folder with a run of other settings or stores, or with files that are no run's.

    More or fewer seeds, and the same stores extracted anew, make no other run: the same command goes on there.

    Raises:
        UserError: Says what differs.
    """
    try:
        record = AlignedRun.open(out).record
    except UserError:  # none, or one that nothing can be made of
        names = sorted(path.name for path in out.here.iterdir()) if out.here.is_dir() else []
        known = ("run.json", LAYER_FILE, "seed-", ".")
        foreign = [name for name in names if not name.startswith(known)]
        if foreign and not any(name.startswith("seed-") for name in names):
            found, remedy = f"a folder that holds {foreign[0]} and no run", "name another --out"
            raise UserError(expected="a new folder, or a run's", found=found, where=str(out), remedy=remedy) from None
        return
    before, now = record.get("config", {}), config.to_json()
    named = [name for name, about in declared(AlignConfig).items() if about.changes_bytes and name != "seeds"]
    differs = [
        f"{name} = {before[name]} (asked for: {now[name]})"
        for name in named
        if name in before and before[name] != now[name]
    ]
    for side in sides:
        old, stores = record["stores"][side.modality], side.stores
        keys = [store.key.digest() for store in stores]
        same = [entry["key_digest"] for entry in old] == keys
        places = [entry["path"] for entry in old] == [str(store.root) for store in stores]
        differs += [] if same or places else [f"other {side.modality} stores"]
    if differs:
        raise UserError(
            expected="a new folder, or this very run",
            found=f"a run with {', '.join(differs[:3])}",
            where=str(out),
            remedy="name another --out, or make this run in its place with --replace",
        )


def _choose_layers(
    sides: tuple[Side, Side], splits: Splits, config: AlignConfig, folder: Path, progress: Progress
) -> ChosenLayers:
    """Choose layers on the first seed's training images; scores of an earlier run on the same ones are reused."""
    pairs = splits.train.pick(draw(*sides, splits.train, config, config.seeds[0]))
    digest = layers_digest(*sides, config)
    known = known_scores(folder, digest)
    chosen = choose_layers(sides, pairs, splits.validation, config, known=known, progress=progress)
    if chosen.scores is not None and known is None:
        save_scores(folder, digest, chosen.scores)
    elif chosen.scores is None:
        (folder / LAYER_FILE).unlink(missing_ok=True)
    return chosen


def _fit_seeds(
    config: AlignConfig, sides: tuple[Side, Side], layers: Layers, splits: Splits, out: Storage, progress: Progress
) -> "list[SeedResult]":
    """Return a result for each seed, old or new; features are read only if a seed is left to do."""
    seeds = _seeds(config, progress)
    drawn = {seed: draw(*sides, splits.train, config, seed) for seed in seeds}
    pools = {seed: pool_rows(config, sides, splits, drawn[seed], seed, progress) for seed in seeds}
    digests = {seed: seed_digest(*sides, layers, config, seed, pools[seed]) for seed in seeds}
    finished = {seed: finished_seed(out.here, seed, digests[seed]) for seed in seeds}
    results = {seed: result for seed, result in finished.items() if result is not None}
    if results:
        reused = ", ".join(map(str, results))
        say(progress, f"Reused from an earlier run with the same settings and features: seed {reused}.")
    if len(results) < len(seeds):
        out.delete(["run.json"])
        recipe, device = config.recipe(), resolve_device(config.device)
        everything = PairFeatures.read(sides, layers, splits.train, device)
        validation = PairFeatures.read(sides, layers, splits.validation, device)
        for seed in [seed for seed in seeds if seed not in results]:
            pool = pools[seed].read(layers, device)
            trained = fit_seed(recipe, everything.pick(drawn[seed]), validation, seed, pool)
            results[seed] = save_seed(out.here, seed, digests[seed], trained)
            out.push([f"{folder_of(seed)}/*"], last=f"{folder_of(seed)}/seed.json")
            rate = f", found learning rate {trained.learning_rate:.2g}" if recipe.finds_rate else ""
            say(
                progress,
                f"Seed {seed}: mean recall {selection_score(trained.validation):.3f} on validation, "
                f"{count(trained.steps, 'step')}, {trained.seconds:.1f} s{rate}{_pool_told(trained)}.",
            )
    return [results[seed] for seed in seeds]


def fit_seed(
    recipe: Recipe, data: PairFeatures, validation: PairFeatures, seed: int, pool: Pool | None = None
) -> Trained:
    """Return one seed's projectors.

    Args:
        recipe: The method.
        data: Its training pairs.
        validation: Validation pairs: they choose a closed form's ridge strength, its temperature, and the best weights.
        seed: Decides random weights, batches and noise, and those of the search for a learning rate.
        pool: Images and texts without a partner, for a method that takes them.

    Raises:
        UserError: The closed form or the initial projectors cannot be made of these pairs.
        PipelineError: The loss is no longer finite, or no learning rate was found.
    """
    if not recipe.trained:
        return fit_untrained(recipe, data, validation, pool)
    projectors = initial_projectors(data, validation, recipe, seed)
    if recipe.finds_rate:
        recipe = with_rate(recipe, find_learning_rate(data, recipe, projectors, seed=seed).rate)
    trained = train(data, validation, recipe, projectors, seed=seed)
    if recipe.hubness.neighbours == 0:
        return trained
    image, text = corrected(trained.image, trained.text, data, recipe.hubness)
    return dataclasses.replace(trained, image=image, text=text, **measured(image, text, validation, recipe))


def _pool_told(trained: Trained) -> str:
    if trained.unpaired is None:
        return ""
    rounds, gain = trained.unpaired["rounds"], trained.unpaired.get("gain", 0.0)
    how = f"used in {count(rounds, 'round')}" if rounds else "left alone"
    rows = f"{count(trained.unpaired['images'], 'image')} and {count(trained.unpaired['texts'], 'text')}"
    return f"; {rows} without a partner were {how} (reciprocal rank of held-out pairs {gain:+.3f})"


def _seeds(config: AlignConfig, progress: Progress) -> Sequence[int]:
    """A closed form on all pairs is the same for every seed: one is enough."""
    drawn = config.pairs is not None or config.captions_per_image is not None
    if config.recipe().trained or drawn or len(config.seeds) == 1:
        return config.seeds
    say(progress, f"{config.method} needs no random numbers: one seed is enough.")
    return config.seeds[:1]


@dataclass(frozen=True)
class SeedResult:
    """A finished seed."""

    record: dict[str, Any]
    """Its entry in run.json."""
    dim: int
    """Width of its shared space."""


def layers_digest(image: Side, text: Side, config: AlignConfig) -> str:
    """Return the digest of what the scores of all layers depend on."""
    sides = [side_digest(side, side.layers()) for side in (image, text)]
    return spaced_json_digest([REVISION, sides, config.layer_metric, *_drawn(config, config.seeds[0])])


def seed_digest(
    image: Side, text: Side, layers: Layers, config: AlignConfig, seed: int, pool: PoolRows | None = None
) -> str:
    """Return the digest of what a seed's projectors depend on."""
    sides = [side_digest(side, chosen) for side, chosen in zip((image, text), layers, strict=True)]
    more = [pool.digest] if pool is not None and pool.digest else []
    return spaced_json_digest([REVISION, sides, dataclasses.asdict(config.recipe()), *_drawn(config, seed), *more])


def _drawn(config: AlignConfig, seed: int) -> list[Any]:
    captions = [] if config.captions_per_image is None else [config.captions_per_image]
    return [config.pairs, seed, config.train_split, config.validation_split, *captions]


def side_digest(side: Side, layers: Sequence[LayerRef]) -> list[Any]:
    """Return, as plain data, the keys, rows and layers' digests of a side's stores: what its features are."""
    stores = [[store.key.digest(), store.manifest.ids, store.manifest.samples] for store in side.stores]
    return [stores, [[*layer, side.stores[layer.store].layer(layer.name).digest] for layer in layers]]


def folder_of(seed: int) -> str:
    """Return the name of a seed's folder."""
    return f"seed-{seed}"


def finished_seed(out: Path, seed: int, digest: str) -> SeedResult | None:
    """Return a seed that an earlier run finished with the same settings and features, or None."""
    folder = out / folder_of(seed)
    if not (folder / "seed.json").is_file():
        return None
    data = read_signed(folder / "seed.json", "a finished seed")
    whole = all((folder / f"{side}.{kind}").is_file() for side in SIDES for kind in ("safetensors", "json"))
    if not whole or data.pop("digest", None) != digest:
        return None
    result = fill(SeedResult, data, str(folder / "seed.json"))
    fill(SeedRecord, result.record, str(folder / "seed.json"))
    return result


def save_seed(out: Path, seed: int, digest: str, trained: Trained) -> SeedResult:
    """Write a seed's projectors and history, and last of all its seed.json."""
    folder = out / folder_of(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed.json").unlink(missing_ok=True)
    save_projector(folder, "image", trained.image)
    save_projector(folder, "text", trained.text)
    lines = [json.dumps(row) + "\n" for row in trained.history]
    write_atomically(folder / "history.jsonl", "".join(lines).encode())
    record = {
        "seed": seed,
        "folder": folder_of(seed),
        "validation": trained.validation,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 3),
        "temperature": trained.temperature,
        "temperature_source": trained.temperature_source,
        "learning_rate": trained.learning_rate,
        **({} if trained.unpaired is None else {"unpaired": trained.unpaired}),
    }
    result = SeedResult(record, trained.image.d)
    about = {"digest": digest, "dim": result.dim, "record": record}
    write_atomically(folder / "seed.json", dump_signed(about))
    return result


def logged_seed(config: AlignConfig, out: Storage, seed: int) -> LoggedSeed:
    """Return a finished seed as loggers take it, all of it read from its folder."""
    folder = out.here / folder_of(seed)
    about = read_signed(folder / "seed.json", "a finished seed")
    return LoggedSeed(
        run=out.name,
        seed=seed,
        digest=str(about.get("digest")),
        settings=config.to_json(),
        history=tuple(read_lines(folder / "history.jsonl", "a step")),
        record=fill(SeedResult, about, str(folder / "seed.json")).record,
    )


def known_scores(out: Path, digest: str) -> LayerScores | None:
    """Return the layer scores that an earlier run wrote for the same features and pairs, or None."""
    path = out / LAYER_FILE
    if not path.is_file():
        return None
    data = read_signed(path, "scores of layers")
    return LayerScores.from_json(data, str(path)) if data.get("digest") == digest else None


def save_scores(out: Path, digest: str, scores: LayerScores) -> None:
    """Write layer_pairs.json."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / LAYER_FILE, dump_signed({**dataclasses.asdict(scores), "digest": digest}))


def record_of(
    config: AlignConfig, sides: tuple[Side, Side], chosen: ChosenLayers, splits: Splits, results: Sequence[SeedResult]
) -> dict[str, Any]:
    """Return what run.json holds.

    Args:
        config: The settings.
        sides: The image and the text side.
        chosen: Their layers.
        splits: The training and validation pairs.
        results: The seeds.
    """
    named = {"image": (sides[0], chosen.image), "text": (sides[1], chosen.text)}
    return {
        "method": config.method,
        "config": config.to_json(),
        "layers": {name: [side.label(layer) for layer in layers] for name, (side, layers) in named.items()},
        "layers_by_store": {
            name: [[layer.name for layer in layers if layer.store == index] for index in range(len(side.stores))]
            for name, (side, layers) in named.items()
        },
        "stores": {name: [_store(store) for store in side.stores] for name, (side, _) in named.items()},
        "dim": results[0].dim,
        "temperature": results[0].record["temperature"],
        "temperature_source": results[0].record["temperature_source"],
        "pairs": {
            "training_images": config.pairs or len(splits.train),
            "captions_per_image": config.captions_per_image,
            "validation_images": len(splits.validation),
            "validation_carved": splits.carved,
        },
        "seeds": [result.record for result in results],
        "layer_scores": LAYER_FILE if chosen.scores is not None else None,
        "versions": {name: installed_version(name) or "unknown" for name in PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _store(store: Any) -> dict[str, Any]:
    return {
        "key_digest": store.key.digest(),
        "content_digest": store.content_digest,
        "key": store.key.to_json(),
        "spec": str(store.manifest.provenance.get("spec", "")),
        "path": str(store.root),
    }
