"""The align stage: stores in, a run folder out. Run by `pipeline align` and `stages/align.py`.

path = align(AlignConfig(image=(…,), text=(…,), out=…, method="combined"), progress=print)

A seed that is finished with the same settings and the same features is not done again; an interrupted one is.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.align import closed_form
from pipeline.align.config import AlignConfig
from pipeline.align.hubness import corrected
from pipeline.align.layer_choice import ChosenLayers, choose_layers
from pipeline.align.loggers.table import log_seeds, need_logger
from pipeline.align.lr_finder import find_learning_rate
from pipeline.align.pairs import Splits, draw, split_pairs
from pipeline.align.recipe import Recipe, with_rate
from pipeline.align.resume import (
    LAYER_FILE,
    SeedResult,
    finished_seed,
    folder_of,
    known_scores,
    layers_digest,
    logged_seed,
    save_scores,
    save_seed,
    seed_digest,
)
from pipeline.align.start import starting_projectors
from pipeline.align.tensors import PairTensors
from pipeline.align.train import Trained, train
from pipeline.align.validation import selection_score
from pipeline.progress import Progress, say, silent
from pipeline.projectors.run_record import RUN_FILES, AlignedRun
from pipeline.remote.binding import address, addressed
from pipeline.remote.folder import pull_folder, push_folder, remove_file
from pipeline.runtime import installed_version, resolve_device
from pipeline.store.side import LayerRef, Side

PACKAGES = ("fewpairs", "torch", "numpy")


def align(config: AlignConfig, progress: Progress = silent) -> Path:
    """Choose layers, make projectors for every seed, and write the run; return its folder.

    `run.json` is written last and taken away first: a folder that holds one is a whole run of one configuration.

    Args:
        config: What to align, how.
        progress: Gets a sentence for each thing done, reused or decided.

    Raises:
        UserError: Stores that cannot be used, too few pairs, features that are not finite or constant, settings, a
            logger that is not installed.
        PipelineError: The loss is no longer finite, or the logger failed.
    """
    if config.log_to:
        need_logger(config.log_to)
    device = resolve_device(config.device)
    pull_folder(config.out, RUN_FILES)
    image, text = Side.open("image", config.image), Side.open("text", config.text)
    splits = split_pairs(image, text, config, progress)
    chosen = _choose(image, text, splits, config, progress)
    say(
        progress,
        f"Aligning {_names(image, chosen.image)} with {_names(text, chosen.text)}: "
        f"{config.pairs or len(splits.train)} training images, {len(splits.validation)} for validation.",
    )
    results = _Seeds(config, (image, text), (chosen.image, chosen.text), splits, device, progress).run()
    AlignedRun.write(config.out, record_of(config, (image, text), chosen, splits, results))
    if config.log_to:
        seeds = [logged_seed(config, result.record["seed"]) for result in results]
        say(progress, f"Logged: {log_seeds(config.log_to, config.out, seeds)}.")
    return config.out


class _Seeds:
    """The loop over seeds; features are read only if a seed is left to do."""

    def __init__(
        self,
        config: AlignConfig,
        sides: tuple[Side, Side],
        layers: tuple[tuple[LayerRef, ...], tuple[LayerRef, ...]],
        splits: Splits,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config, self.sides, self.layers = config, sides, layers
        self.splits, self.device, self.progress = splits, device, progress
        self.recipe = config.recipe()

    def run(self) -> list[SeedResult]:
        """Return a result for each seed, old or new."""
        seeds = self._seeds()
        digests = {seed: seed_digest(*self.sides, self.layers, self.config, seed) for seed in seeds}
        old = {seed: finished_seed(self.config.out, seed, digests[seed]) for seed in seeds}
        left = [seed for seed in seeds if old[seed] is None]
        reused = [str(seed) for seed in seeds if old[seed] is not None]
        if reused:
            say(
                self.progress,
                f"Reused from an earlier run with the same settings and features: seed {', '.join(reused)}.",
            )
        results = {seed: result for seed, result in old.items() if result is not None}
        if left:
            remove_file(self.config.out / "run.json")
            results |= self._make(left, digests)
        return [results[seed] for seed in seeds]

    def _seeds(self) -> Sequence[int]:
        """A closed form on all pairs is the same for every seed: one is enough."""
        drawn = self.config.pairs is not None or self.config.captions_per_image is not None
        if self.recipe.trained or drawn or len(self.config.seeds) == 1:
            return self.config.seeds
        say(self.progress, f"{self.config.method} needs no random numbers: one seed stands for all.")
        return self.config.seeds[:1]

    def _make(self, seeds: Sequence[int], digests: dict[int, str]) -> dict[int, SeedResult]:
        everything = PairTensors.read(self.sides, self.layers, self.splits.train, self.device)
        validation = PairTensors.read(self.sides, self.layers, self.splits.validation, self.device)
        results: dict[int, SeedResult] = {}
        blocks = (self.sides[0].widths(self.layers[0]), self.sides[1].widths(self.layers[1]))
        for seed in seeds:
            data = everything.pick(draw(*self.sides, self.splits.train, self.config, seed))
            trained = make_seed(self.recipe, data, validation, blocks, seed)
            results[seed] = save_seed(self.config.out, seed, digests[seed], trained)
            push_folder(self.config.out, [f"{folder_of(seed)}/*"], last=f"{folder_of(seed)}/seed.json")
            say(
                self.progress,
                f"Seed {seed}: mean recall {selection_score(trained.validation):.3f} on validation, "
                f"{trained.steps} steps, {trained.seconds:.1f} s{self._rate(trained)}.",
            )
        return results

    def _rate(self, trained: Trained) -> str:
        return f", learning rate {trained.learning_rate:.2g} was found" if self.recipe.finds_rate else ""


def make_seed(
    recipe: Recipe, data: PairTensors, validation: PairTensors, blocks: tuple[list[int], list[int]], seed: int
) -> Trained:
    """Return one seed's projectors: a closed form, or what training makes of the recipe's start.

    Args:
        recipe: The method.
        data: Its training pairs.
        validation: Validation pairs.
        blocks: Widths of the concatenated layers of each side.
        seed: Decides random weights, batches and noise, and those of the search for a learning rate.

    Raises:
        UserError: The closed form or the start cannot be made of these pairs.
        PipelineError: The loss is no longer finite, or no learning rate was found.
    """
    if not recipe.trained:
        return closed_form.fit(data, validation, recipe, blocks)
    projectors = starting_projectors(data, validation, recipe, blocks, seed)
    if recipe.finds_rate:
        recipe = with_rate(recipe, find_learning_rate(data, recipe, projectors, seed=seed).rate)
    return corrected(train(data, validation, recipe, projectors, seed=seed), data, validation, recipe)


def _choose(image: Side, text: Side, splits: Splits, config: AlignConfig, progress: Progress) -> ChosenLayers:
    """Choose layers on the first seed's training images; scores of an earlier run on the same ones are reused."""
    pairs = splits.train.pick(draw(image, text, splits.train, config, config.seeds[0]))
    digest = layers_digest(image, text, config)
    known = known_scores(config.out, digest)
    chosen = choose_layers(image, text, pairs, config, progress, known, splits.validation)
    if chosen.scores is not None and known is None:
        save_scores(config.out, digest, chosen.scores)
    elif chosen.scores is None:
        (config.out / LAYER_FILE).unlink(missing_ok=True)
    return chosen


def _names(side: Side, layers: Sequence[LayerRef]) -> str:
    kind = "image layer" if side.modality == "image" else "text layer"
    return f"{kind}{'s' if len(layers) > 1 else ''} {' + '.join(side.label(layer) for layer in layers)}"


def record_of(
    config: AlignConfig, sides_of: tuple[Side, Side], chosen: ChosenLayers, splits: Splits, results: list[SeedResult]
) -> dict[str, Any]:
    """Return what run.json holds.

    Args:
        config: The settings.
        sides_of: The image and the text side.
        chosen: Their layers.
        splits: The training and validation pairs.
        results: The seeds.
    """
    sides = {"image": (sides_of[0], chosen.image), "text": (sides_of[1], chosen.text)}
    return {
        "method": config.method,
        "config": json.loads(addressed(json.dumps(config.to_json()))),
        "layers": {name: [side.label(layer) for layer in layers] for name, (side, layers) in sides.items()},
        "layers_by_store": {
            name: [[layer.name for layer in layers if layer.store == index] for index in range(len(side.stores))]
            for name, (side, layers) in sides.items()
        },
        "stores": {name: [_store(store) for store in side.stores] for name, (side, _) in sides.items()},
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
        "path": address(store.path),
    }
