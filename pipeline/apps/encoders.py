"""Load the encoders that a run's features came from, and make sure that they are the same ones.

A store records its encoder's spec and, in its key, everything that changes the features. What is loaded here must give
the same key: an updated model, another tokenizer or image size is refused, because its features would not fit the
projector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.encoders.base import Dtype, Encoder
from pipeline.encoders.load import load_encoder, own_source
from pipeline.errors import UserError
from pipeline.extract.decode import JPEG_RULES, Reduction
from pipeline.projectors.run_record import AlignedRun, StoreRecord
from pipeline.runtime import DTYPE_NAMES, torch_dtype

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
        self.encoders = [(loader or load_recorded)(record, side, device) for record in run.stores[side]]
        self._check()
        self._stored = [torch_dtype(str(record.key.get("storage_dtype", "float32"))) for record in run.stores[side]]

    @property
    def reduction(self) -> Reduction | None:
        """Return how JPEG files are to be decoded so that queries are read as the store's images were.

        None means exactly; so does a run of several image stores, which may ask for different sizes.
        """
        rules = [self._decoding(record.key) for record in self.run.stores[self.side]]
        return self.encoders[0].reduction if rules == [JPEG_RULES["reduced"]] else None

    @staticmethod
    def _decoding(key: Mapping[str, Any]) -> str:
        return str(((key.get("preprocessing") or {}).get("decode") or {}).get("jpeg", JPEG_RULES["exact"]))

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
        for index, encoder in enumerate(self.encoders):
            names = self._names(index)
            if names:
                for name, values in encoder.encode(prepared[index], names).items():
                    found[index, name] = values.to(self._stored[index]).float()
        return torch.cat([found[layer] for layer in self.layers], dim=1)

    def _batch(self, samples: Sequence[Any]) -> Tensor:
        return self.encoded(
            [
                [encoder.prepare(sample) for sample in samples] if self._names(index) else []
                for index, encoder in enumerate(self.encoders)
            ]
        )

    def _names(self, index: int) -> list[str]:
        return list(dict.fromkeys(name for store, name in self.layers if store == index))

    def _check(self) -> None:
        keys = []
        for encoder, record in zip(self.encoders, self.run.stores[self.side], strict=True):
            made = encoder.key()
            stored: Mapping[str, Any] = record.key.get("encoder") or {}
            source = own_source(encoder) if "source" in stored else {}
            named = {**made.encoder, **source}
            parts = {"encoder": named, "preprocessing": made.preprocessing, "pooling": made.pooling}
            keys.append({**record.key, **parts})
        where = ", ".join(encoder.spec for encoder in self.encoders)
        self.run.check(self.side, keys, where, ignore=NOT_THE_ENCODERS)


def load_recorded(record: StoreRecord, side: str, device: str = "cpu") -> Encoder:
    """Load the encoder that a store's record names, with the options that its key tells.

    Raises:
        UserError: The record names no encoder, or it does not load.
    """
    if not record.spec:
        raise UserError(
            expected=f"the spec of the {side} encoder in the run's record",
            found="none",
            where=record.path or "run.json",
            remedy="features made elsewhere can be evaluated, but new samples cannot be encoded",
        )
    options: dict[str, Any] = {}
    if side == "text":
        preprocessing: Mapping[str, Any] = record.key.get("preprocessing") or {}
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
