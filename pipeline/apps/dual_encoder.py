"""A trained run as a dual encoder: pictures and texts in, comparable unit vectors out.

model = DualEncoder.open("data/2_projectors/combined")
image = model.encode_image(["cat.jpg", "dog.jpg"])     # [2, d]; one picture gives one vector [d]
text = model.encode_text(["a cat", "a dog"])           # [2, d]
print(model.similarity(image, text))                   # cosines [2, 2]
print(model.classify("cat.jpg", ["cat", "dog"]))       # probabilities [1, 2]
print(model.search("data/1_features/photos/lite0", "a dog", k=5))

Vectors are for retrieval unless `task="classification"` asks for those that are compared with classes, as `classify`
does: a run that corrects hubs does so in retrieval alone. Vectors of different tasks are not to be compared.

`load_model` does the same for a run or for what `pipeline export` made, and loads the encoders at once.

A store records its encoder's spec and, in its key, everything that changes the features. What is loaded here must give
the same key: an updated model, another tokenizer or image size is refused, because its features would not fit the
projector.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.apps.opening import OpenedRun, open_run
from pipeline.apps.searcher import Searcher, SearchResult
from pipeline.encoders.base import Dtype, Encoder
from pipeline.encoders.load import load_encoder, own_source, refuse_unknown_module
from pipeline.encoders.load import trust_modules as import_trusted
from pipeline.errors import RejectedInputError, UserError
from pipeline.extract.decode import JPEG_RULES, MAX_PIXELS, Reduction, decode_bytes, decode_image
from pipeline.metrics.classification import classifier
from pipeline.progress import Update, progress_bar
from pipeline.projectors.base import Task
from pipeline.projectors.run_record import SIDES, AlignedRun, StoreRecord
from pipeline.runtime import DTYPE_NAMES, torch_dtype
from pipeline.storage.contract import Place
from pipeline.words import html_table

Picture = Image.Image | str | Path
TEMPLATES = ("a photo of a {c}.",)
COMPUTED = {long: cast(Dtype, short) for short, long in DTYPE_NAMES.items()}
# What an encoder cannot know: the data set, the store's number format, and how files are decoded before it sees them.
NOT_THE_ENCODERS = ("format", "modality", "dataset_digest", "compute_dtype", "storage_dtype", "preprocessing.decode")
BATCH = 32
Loader = Callable[[StoreRecord, str, str], Encoder]
"""(record of a store, side, device) → its encoder: `load_recorded`, or one that keeps what it has loaded."""


class SideEncoder:
    """The encoders of one side of a run, applied to samples: raw samples in, the run's concatenated layers out.

    Args:
        run: The run.
        side: `image` or `text`.
        device: A torch device.
        loader: Loads an encoder; `load_recorded` where not given.

    Raises:
        KeyMismatchError: An encoder is not the one that the features came from.
        UserError: An encoder's spec is not recorded, or it does not load.
    """

    def __init__(self, run: AlignedRun, side: str, device: str = "cpu", loader: Loader | None = None) -> None:
        self.run = run
        self.side = side
        self.layers = run.refs(side)
        self._used = sorted({store for store, _ in self.layers})
        self.encoders = [(loader or load_recorded)(record, side, device) for record in run.stores[side]]
        self._check()
        self._stored = [torch_dtype(str(record.key.get("storage_dtype", "float32"))) for record in run.stores[side]]

    @property
    def reduction(self) -> Reduction | None:
        """Return how JPEG files are to be decoded so that queries are read as the store's images were.

        None means exactly; so does a run of several image stores, which may ask for different sizes.
        """
        preprocessing = [record.key.get("preprocessing") or {} for record in self.run.stores[self.side]]
        rules = [(each.get("decode") or {}).get("jpeg") for each in preprocessing]
        return self.encoders[0].reduction if rules == [JPEG_RULES["reduced"]] else None

    def features(self, samples: Sequence[Any]) -> Tensor:
        """Return the features [N, D] of N samples (PIL images or texts), rounded as the store rounds them.

        Raises:
            UserError: A sample cannot be encoded.
        """
        batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
        return torch.cat([self._batch(batch) for batch in batches])

    def encoded(self, prepared: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the features [N, D] of N samples that every encoder has prepared: one list an encoder.

        Raises:
            UserError: A sample cannot be encoded.
        """
        found: dict[tuple[int, str], Tensor] = {}
        for index in self._used:
            names = list(dict.fromkeys(name for store, name in self.layers if store == index))
            for name, values in self.encoders[index].encode(prepared[index], names).items():
                found[index, name] = values.to(self._stored[index]).float()
        return torch.cat([found[layer] for layer in self.layers], dim=1)

    def _batch(self, samples: Sequence[Any]) -> Tensor:
        return self.encoded(
            [
                [encoder.prepare(sample) for sample in samples] if index in self._used else []
                for index, encoder in enumerate(self.encoders)
            ]
        )

    def _check(self) -> None:
        keys = []
        for encoder, record in zip(self.encoders, self.run.stores[self.side], strict=True):
            made = encoder.key()
            source = own_source(encoder) if "source" in (record.key.get("encoder") or {}) else {}
            named = {"encoder": {**made.encoder, **source}}
            keys.append({**record.key, **named, "preprocessing": made.preprocessing, "pooling": made.pooling})
        where = ", ".join(encoder.spec for encoder in self.encoders)
        self.run.check(self.side, keys, where, ignore=NOT_THE_ENCODERS)


def load_recorded(record: StoreRecord, side: str, device: str = "cpu") -> Encoder:
    """Load the encoder that a store's record names, with the options that its key tells.

    Raises:
        UserError: The record names no encoder, one whose module this process has not imported, or it does not load.
    """
    where = record.path or "run.json"
    if not record.spec:
        remedy = "features made elsewhere can be evaluated, but new samples cannot be encoded"
        raise UserError(
            expected=f"the spec of the {side} encoder in the run's record", found="none", where=where, remedy=remedy
        )
    refuse_unknown_module(record.spec, where)
    options: dict[str, Any] = {}
    if side == "text":
        preprocessing = record.key.get("preprocessing") or {}
        options = {"prompt": preprocessing.get("prompt") or "", "max_length": preprocessing.get("max_length")}
    pooling = str(record.key.get("pooling", "auto"))
    return load_encoder(
        record.spec,
        modality="image" if side == "image" else "text",
        pool="auto" if pooling.startswith("auto") else pooling,
        device=device,
        dtype=COMPUTED.get(str(record.key.get("compute_dtype")), "fp32"),
        **options,
    )


class DualEncoder:
    """Both sides of a run with the encoders that its features came from, each loaded when it is first used.

    Whatever encodes raises a KeyMismatchError where the encoder that loads is not that one.

    Args:
        run: The run.
        seed: Which of its seeds; the first where not given.
        device: A torch device.
        loader: Loads an encoder; where not given, each is loaded anew.
    """

    def __init__(
        self, run: AlignedRun, seed: int | None = None, device: str = "cpu", loader: Loader | None = None
    ) -> None:
        self.run = run
        self.seed = run.seeds[0] if seed is None else seed
        self.device = device
        self._loader = loader
        self._sides: dict[str, SideEncoder] = {}
        self._searchers: dict[str, Searcher] = {}
        run.projector("text", self.seed)

    def __repr__(self) -> str:
        return f"<DualEncoder {self.run.method}, seed {self.seed}, {self.run.dim} dimensions; {self.run.root}>"

    def _repr_html_(self) -> str:
        rows = [
            (side, ", ".join(record.spec for record in self.run.stores[side]), ", ".join(self.run.layers[side]))
            for side in SIDES
        ]
        return html_table(repr(self), ("side", "encoder", "layers"), rows)

    @classmethod
    def open(
        cls, path: Place, *, seed: int | None = None, device: str = "cpu", trust_modules: Iterable[str] = ()
    ) -> "DualEncoder":
        """Open the folder of a run, or of what `pipeline export` made of one.

        Args:
            path: The folder.
            seed: Which of its seeds; the first where not given.
            device: A torch device.
            trust_modules: Modules with encoders of your own that the run may name (`module:Class`): they are imported,
                as `--trust-module` does. No other module is imported because a file names it.

        Raises:
            UserError: It holds neither, there is no such seed, or no such module.
        """
        import_trusted(trust_modules)
        return cls(open_run(path), seed, device)

    @property
    def temperature(self) -> float:
        """What cosines of retrieval are divided by to become probabilities: learned, or fitted on validation pairs."""
        return self.run.temperature(self.seed)[0]

    def at_seed(self, seed: int) -> "DualEncoder":
        """Return the same run with another seed's projectors; the encoders are shared.

        Raises:
            UserError: No such seed.
        """
        other = DualEncoder(self.run, seed, self.device, self._loader)
        other._sides = self._sides
        return other

    def encode_image(
        self,
        images: Picture | Iterable[Picture],
        *,
        batch_size: int = BATCH,
        show_progress: bool = False,
        normalize: bool = True,
        task: Task = "retrieval",
    ) -> Tensor:
        """Return the vectors [N, d] of N pictures, or [d] of one: PIL images as they are, or files, turned upright.

        Args:
            images: A picture or several; files are opened a batch at a time.
            batch_size: How many are encoded at once.
            show_progress: Draw a bar on standard error.
            normalize: Give the vectors unit length.
            task: What they are for; the d of `classification` may be smaller.

        Raises:
            UserError: A file is no picture.
            UnknownNameError: No such task.
        """
        if isinstance(images, Picture):
            return self._encode("image", [images], 1, task, quiet=True, normalize=normalize)[0]
        return self._encode("image", list(images), batch_size, task, quiet=not show_progress, normalize=normalize)

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = BATCH,
        show_progress: bool = False,
        normalize: bool = True,
        task: Task = "retrieval",
    ) -> Tensor:
        """Return the vectors [N, d] of N texts, or [d] of one; the arguments are those of `encode_image`.

        Raises:
            UserError: A text holds no token.
        """
        if isinstance(texts, str):
            return self._encode("text", [texts], 1, task, quiet=True, normalize=normalize)[0]
        return self._encode("text", list(texts), batch_size, task, quiet=not show_progress, normalize=normalize)

    def for_classification(self, images: Tensor) -> Tensor:
        """Return image vectors of retrieval [N, d], such as an index keeps, as classes are compared with."""
        return self.run.projector("image", self.seed).for_task(images, "classification")

    def class_vectors(
        self, classes: Sequence[str], templates: Sequence[str] | Mapping[str, Sequence[str]] = TEMPLATES
    ) -> Tensor:
        """Return one unit vector a class [C, d]: the normalised mean of its prompts' embeddings, for classification.

        Args:
            classes: C names.
            templates: Sentences with `{c}` or `{}` where the name goes, or class → its own prompts.

        Raises:
            UserError: No class, or a class twice or without a prompt.
        """
        prompts, owner = class_prompts(classes, templates)
        return classifier(self.encode_text(prompts, task="classification"), torch.tensor(owner), len(classes))

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosines [N, M] of vectors [N, d] or [d] with vectors [M, d] or [d].

        Raises:
            UserError: They are of different widths.
        """
        rows = [torch.as_tensor(each).float().reshape(-1, each.shape[-1]) for each in (first, second)]
        a, b = (functional.normalize(each, dim=1) for each in rows)
        if a.shape[1] != b.shape[1]:
            raise UserError(expected=f"vectors of width {a.shape[1]}", found=f"width {b.shape[1]}", where="similarity")
        return a @ b.T

    def search(self, store: Place, query: str | Path | Image.Image, k: int = 10) -> SearchResult:
        """Return the K images of a store that fit a text, a picture's file (`Path`) or a PIL image best.

        The store's features are projected when it is first searched, and kept.

        Raises:
            KeyMismatchError: The store holds features of another key than the run was trained on.
            UserError: The store is missing, the query is empty or no picture, or `k` is not positive.
        """
        name = str(store)
        if name not in self._searchers:
            self._searchers[name] = Searcher(self, OpenedRun(self.run, (store,)))
        searcher = self._searchers[name]
        return searcher.by_text(query, k) if isinstance(query, str) else searcher.by_image(query, k)

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return a picture that lies in memory, decoded as the run's images were and turned upright.

        Raises:
            UserError: The data are no picture, or one of more pixels.
        """
        try:
            return decode_bytes(data, self.side("image").reduction, max_pixels=max_pixels, turn=True)
        except RejectedInputError as error:
            raise UserError(expected="a picture", found=str(error), where="image") from error

    def classify(
        self,
        images: Picture | Sequence[Picture],
        classes: Sequence[str],
        templates: Sequence[str] | Mapping[str, Sequence[str]] = TEMPLATES,
    ) -> Tensor:
        """Return the probability of each class [N, C] for N pictures (a single one counts as N = 1).

        Probabilities are the softmax of the cosines with `class_vectors` over the run's temperature.

        Args:
            images: Pictures.
            classes: C names.
            templates: Sentences with `{c}` or `{}` where the name goes, or class → its own prompts.

        Raises:
            UserError: No class, a class twice or without a prompt, or a file is no picture.
        """
        pictures = [images] if isinstance(images, Picture) else images
        cosines = self.encode_image(pictures, task="classification") @ self.class_vectors(classes, templates).T
        return torch.softmax(cosines / self.run.temperature(self.seed, "classification")[0], dim=1)

    def _encode(
        self,
        side: Literal["image", "text"],
        samples: Sequence[Any],
        batch: int,
        task: Task,
        *,
        quiet: bool,
        normalize: bool,
    ) -> Tensor:
        projector = self.run.projector(side, self.seed)
        if not samples:
            return projector.for_task(torch.empty(0, self.run.dim), task)
        if batch < 1:
            raise UserError(expected="1 or more", found=str(batch), where="batch_size")
        _check_kinds(side, samples)
        encoders, parts = self.side(side), []
        with progress_bar(quiet=quiet) as progress:
            for start in range(0, len(samples), batch):
                part = samples[start : start + batch]
                if side == "image":
                    part = [_picture(image, encoders.reduction) for image in part]
                parts.append(encoders.features(part))
                progress(Update(what=f"{side}s", done=start + len(part), total=len(samples)))
        features = torch.cat(parts)
        if normalize:
            return self.run.encode(side, features, self.seed, task=task)
        with torch.no_grad():
            return projector.for_task(projector.eval().project(features), task)

    def side(self, side: str) -> SideEncoder:
        """Return a side's encoders, loaded once and checked.

        Raises:
            KeyMismatchError: An encoder that loads is not the one that the features came from.
            UserError: Its spec is not recorded, or it does not load.
        """
        if side not in self._sides:
            self._sides[side] = SideEncoder(self.run, side, self.device, self._loader)
        return self._sides[side]


def load_model(
    path: Place, *, seed: int | None = None, device: str = "cpu", trust_modules: Iterable[str] = ()
) -> DualEncoder:
    """Open a run or an export and load its encoders, which must be the ones that it was trained on.

    Arguments are those of `DualEncoder.open`.

    Raises:
        KeyMismatchError: An encoder that loads is another one: names each field that differs.
        UserError: The folder holds neither a run nor an export, or an encoder is not there.
    """
    model = DualEncoder.open(path, seed=seed, device=device, trust_modules=trust_modules)
    for side in SIDES:
        model.side(side)
    return model


def class_prompts(
    classes: Sequence[str], templates: Sequence[str] | Mapping[str, Sequence[str]]
) -> tuple[list[str], list[int]]:
    """Return the prompts of all classes and the position of the class that each belongs to.

    Args:
        classes: C names.
        templates: Sentences with `{c}` or `{}` where the name goes, or class → its own prompts.

    Raises:
        UserError: No class, a class twice or without a prompt, or one text in place of a list.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) < len(classes):
        found = "one text" if isinstance(classes, str) else repr(list(classes))
        raise UserError(expected="a list of class names, each once", found=found)
    if isinstance(templates, str):
        raise UserError(expected="a list of templates", found="one text", remedy="write [template]")
    if isinstance(templates, Mapping):
        by_class = [list(templates.get(name, ())) for name in classes]
    else:
        by_class = [[each.replace("{c}", name).replace("{}", name) for each in templates] for name in classes]
    missing = [name for name, prompts in zip(classes, by_class, strict=True) if not prompts]
    if missing:
        raise UserError(expected="a prompt for each class", found=f"none for {', '.join(missing[:5])}")
    flat = [(prompt, place) for place, prompts in enumerate(by_class) for prompt in prompts]
    return [prompt for prompt, _ in flat], [place for _, place in flat]


def _check_kinds(side: str, samples: Sequence[Any]) -> None:
    """Refuse what is no sample of a side: a number among texts, an array among pictures."""
    kinds, expected = (Picture, "pictures: PIL images or files") if side == "image" else (str, "texts")
    for place, sample in enumerate(samples):
        if not isinstance(sample, kinds):
            raise UserError(expected=expected, found=type(sample).__name__, where=f"item {place}")


def _picture(image: Picture, reduction: Reduction | None) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decode_image(Path(image), reduction, turn=True)
    except RejectedInputError as error:
        raise UserError(expected="a picture", found=str(error), where=str(image)) from error
