"""A trained run as a dual encoder: pictures and texts in, comparable unit vectors out.

model = DualEncoder.open("data/2_projectors/combined")
image = model.encode_image(["cat.jpg", "dog.jpg"])     # [2, d]
text = model.encode_text(["a cat", "a dog"])           # [2, d]
print(image @ text.T)                                  # cosine
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipeline.apps.encoders import SideEncoder
from pipeline.errors import UserError
from pipeline.extract.decode import Reduction, decode_image
from pipeline.extract.rejected import RejectedInputError
from pipeline.projectors.run_record import AlignedRun


class DualEncoder:
    """Both sides of a run with the encoders that its features came from, each loaded when it is first used.

    Args:
        run: The run.
        seed: Which of its seeds; the first where not given.
        device: A torch device.
    """

    def __init__(self, run: AlignedRun, seed: int | None = None, device: str = "cpu") -> None:
        self.run = run
        self.seed = run.seeds[0] if seed is None else seed
        self.device = device
        self._sides: dict[str, SideEncoder] = {}
        run.projector("text", self.seed)

    @classmethod
    def open(cls, path: str | Path, *, seed: int | None = None, device: str = "cpu") -> "DualEncoder":
        """Open a run's folder.

        Raises:
            UserError: It holds no run, or no such seed.
        """
        return cls(AlignedRun.open(Path(path)), seed, device)

    def encode_image(self, images: Sequence[Image.Image | str | Path]) -> Tensor:
        """Return unit vectors [N, d] of N pictures: PIL images or files.

        Raises:
            KeyMismatchError: The encoder that loads is not the one that the features came from.
            UserError: A file is no picture.
        """
        if not images:
            return torch.empty(0, self.run.dim)
        reduction = self._side("image").reduction
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

    def _encode(self, side: str, samples: Sequence[Image.Image] | Sequence[str]) -> Tensor:
        return self.run.encode(side, self._side(side).features(samples), self.seed)

    def _side(self, side: str) -> SideEncoder:
        if side not in self._sides:
            self._sides[side] = SideEncoder(self.run, side, self.device)
        return self._sides[side]


def _picture(image: Image.Image | str | Path, reduction: Reduction | None) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decode_image(Path(image), reduction)
    except RejectedInputError as error:
        raise UserError(expected="a picture", found=str(error), where=str(image)) from error
