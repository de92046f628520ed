"""A trained run as a dual encoder: pictures and texts in, comparable unit vectors out.

model = DualEncoder.open("data/2_projectors/combined")
image = model.encode_image(["cat.jpg", "dog.jpg"])     # [2, d]
text = model.encode_text(["a cat", "a dog"])           # [2, d]
print(image @ text.T)                                  # cosine
print(model.classify("cat.jpg", ["cat", "dog"]))       # probabilities [1, 2]

`load_model` does the same for a run or for what `pipeline export` made, and loads the encoders at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipeline.apps.encoders import Loader, SideEncoder
from pipeline.apps.opening import open_run
from pipeline.errors import RejectedInputError, UserError
from pipeline.extract.decode import MAX_PIXELS, Reduction, decode_bytes, decode_image
from pipeline.metrics.classification import classifier
from pipeline.projectors.run_record import SIDES, AlignedRun
from pipeline.storage.contract import Place

Picture = Image.Image | str | Path
TEMPLATES = ("a photo of a {c}.",)


class DualEncoder:
    """Both sides of a run with the encoders that its features came from, each loaded when it is first used.

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
        run.projector("text", self.seed)

    def __repr__(self) -> str:
        return f"<DualEncoder {self.run.method}, seed {self.seed}, {self.run.dim} dimensions; {self.run.root}>"

    @classmethod
    def open(cls, path: Place, *, seed: int | None = None, device: str = "cpu") -> "DualEncoder":
        """Open the folder of a run, or of what `pipeline export` made of one.

        Raises:
            UserError: It holds neither, or no such seed.
        """
        return cls(open_run(path), seed, device)

    @property
    def temperature(self) -> float:
        """What cosines are divided by to become probabilities: learned, or fitted on validation pairs."""
        return self.run.temperature(self.seed)[0]

    def at_seed(self, seed: int) -> "DualEncoder":
        """Return the same run with another seed's projectors; the encoders are shared.

        Raises:
            UserError: No such seed.
        """
        other = DualEncoder(self.run, seed, self.device, self._loader)
        other._sides = self._sides
        return other

    def encode_image(self, images: Sequence[Picture]) -> Tensor:
        """Return unit vectors [N, d] of N pictures: PIL images, taken as they are, or files, turned upright.

        Raises:
            KeyMismatchError: The encoder that loads is not the one that the features came from.
            UserError: A file is no picture.
        """
        if not images:
            return torch.empty(0, self.run.dim)
        reduction = self.side("image").reduction
        return self._encode("image", [_picture(image, reduction) for image in images])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [N, d] of N texts.

        Raises:
            KeyMismatchError: The encoder that loads is not the one that the features came from.
            UserError: A text holds no token.
        """
        if isinstance(texts, str):
            raise UserError(expected="a list of texts", found="one text", remedy="write [text]")
        return self._encode("text", list(texts)) if texts else torch.empty(0, self.run.dim)

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

        A class is the normalised mean of its prompts' embeddings; probabilities are the softmax of cosine over the
        run's temperature.

        Args:
            images: Pictures.
            classes: C names.
            templates: Sentences with `{c}` or `{}` where the name goes, or class → its own prompts.

        Raises:
            KeyMismatchError: An encoder that loads is not the one that the features came from.
            UserError: No class, a class twice or without a prompt, or a file is no picture.
        """
        prompts, owner = class_prompts(classes, templates)
        single = isinstance(images, Image.Image | str | Path)
        pictures: Sequence[Picture] = [images] if single else images  # type: ignore[assignment,list-item]
        weights = classifier(self.encode_text(prompts), torch.tensor(owner), len(classes))
        return torch.softmax(self.encode_image(pictures) @ weights.T / self.temperature, dim=1)

    def _encode(self, side: str, samples: Sequence[Image.Image] | Sequence[str]) -> Tensor:
        return self.run.encode(side, self.side(side).features(samples), self.seed)

    def side(self, side: str) -> SideEncoder:
        """Return a side's encoders, loaded once and checked.

        Raises:
            KeyMismatchError: An encoder that loads is not the one that the features came from.
            UserError: Its spec is not recorded, or it does not load.
        """
        if side not in self._sides:
            self._sides[side] = SideEncoder(self.run, side, self.device, self._loader)
        return self._sides[side]


def load_model(path: Place, *, seed: int | None = None, device: str = "cpu") -> DualEncoder:
    """Open a run or an export and load its encoders, which must be the ones that it was trained on.

    Raises:
        KeyMismatchError: An encoder that loads is another one: names each field that differs.
        UserError: The folder holds neither a run nor an export, or an encoder is not there.
    """
    model = DualEncoder.open(path, seed=seed, device=device)
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


def _picture(image: Picture, reduction: Reduction | None) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decode_image(Path(image), reduction, turn=True)
    except RejectedInputError as error:
        raise UserError(expected="a picture", found=str(error), where=str(image)) from error
