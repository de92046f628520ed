"""The model card of an export: `README.md` with what it is, how it is used, what it came from and what it reached."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.apps.places import locate
from pipeline.encoders.packages import PACKAGES
from pipeline.encoders.spec import parse_spec
from pipeline.errors import PipelineError
from pipeline.projectors.run_record import SIDES, AlignedRun
from pipeline.projectors.table import read_json

_PUBLISHERS = "see the publisher's own card of this model"


def model_card(run: AlignedRun, model: Mapping[str, Any], usage: str, numbers: Mapping[str, float]) -> str:
    """Return the card as Markdown.

    Args:
        run: The run that was exported.
        model: What its `model.json` says.
        usage: How this form of it is used, as Markdown.
        numbers: What `pipeline evaluate` measured; may be empty.
    """
    parts = [_head(run, model), usage, _encoders(model), _training(run, model), _numbers(numbers, run), _licences(run)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def dataset_of(run: AlignedRun, side: str) -> dict[str, Any]:
    """Return what `dataset.json` says of a side's data set, where it is still there; {} where not."""
    for store in run.stores[side]:
        try:
            place = locate(store.path, run.path)
            provenance = read_json(place / "manifest.json", "a store").get("provenance") if place else None
            named = provenance.get("dataset") if isinstance(provenance, dict) else None
            folder = locate(str(named or ""), place) if place else None
            if folder:
                return read_json(folder / "dataset.json", "a data set")
        except (PipelineError, OSError):
            continue
    return {}


def _head(run: AlignedRun, model: Mapping[str, Any]) -> str:
    return f"""---
library_name: fewpairs
tags: [image-text, dual-encoder, zero-shot-image-classification, feature-extraction]
---
# {_plain(run.path.name)}

Frozen image and text encoders and two small projectors into one space of {model["dim"]} dimensions, where the cosine of
a picture and a sentence says how well they fit. The projectors were made by the method `{_plain(model["method"])}`
(seed {model["seed"]})."""


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


def _training(run: AlignedRun, model: Mapping[str, Any]) -> str:
    pairs = model["training"].get("pairs") or {}
    data = dataset_of(run, "image")
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


def _licences(run: AlignedRun) -> str:
    said = {}
    for side in SIDES:
        data = dataset_of(run, side)
        if data.get("name"):
            licence, attribution = data.get("licence") or "not stated", data.get("attribution") or ""
            said[str(data["name"])] = f"{licence}. {attribution}".strip()
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
    return "of the folder that it lies in" if parsed.folder is not None else _PUBLISHERS


def _table(numbers: Mapping[str, Any], caption: str) -> str:
    rows = list(_rows(numbers))
    if not rows:
        return ""
    return "\n".join([f"| {_plain(caption)} | |", "|---|---|", *rows])


def _rows(numbers: Mapping[str, Any]) -> Iterator[str]:
    for name, value in numbers.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.endswith("_std"):
            share = "recall" in name or "acc" in name
            spread = numbers.get(f"{name}_std")
            shown = f"{100 * value:.1f} %" if share else f"{value:.4g}"
            spread_shown = f" ± {100 * spread:.1f}" if share and isinstance(spread, float) else ""
            yield f"| {_plain(name)} | {shown}{spread_shown} |"


def _plain(text: object) -> str:
    """Return a text on one line that breaks no table and opens no tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
