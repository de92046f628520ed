"""What is done to pairs and captions to see how much a method bears: swap, drop, shuffle, noise.

Used by `pipeline.study.bench` (training pairs), `measure` (image features) and `prepare` (captions).
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.align.pairs import Drawn


def swap_captions(drawn: Drawn, share: float, seed: int) -> Drawn:
    """Give a share of the drawn images the captions of another of them.

    The images are drawn by seed, a smaller share is a part of a larger one, and each gets the captions of the next in
    a random circle, so that none keeps its own (one image alone is left as it is).

    Args:
        drawn: Training data.
        share: Share of the m images, 0 to 1.
        seed: Draws the images.
    """
    images = len(drawn.images)
    circle = np.random.default_rng((seed, 2)).permutation(images)[: round(share * images)]
    if len(circle) < 2:
        return drawn
    source = np.arange(images)
    source[circle] = np.roll(circle, 1)
    counts = np.diff(drawn.starts)[source]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    return Drawn(drawn.images, drawn.captions[np.repeat(drawn.starts[:-1][source], counts) + within], starts)


def add_noise(features: Tensor, sigma: float, seed: int) -> Tensor:
    """Return features [N, D] with Gaussian noise of σ·‖x‖/√D a coordinate: σ = 1 is as long as the row itself."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(features.shape, generator=generator)
    scale: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True) * (sigma / features.shape[1] ** 0.5)
    return features + noise * scale


def drop_words(caption: str, share: float, generator: np.random.Generator) -> str:
    """Return a caption without a share of its words; one word at least stays, and one at least goes where two are."""
    words = caption.split()
    gone = min(max(round(share * len(words)), 1), len(words) - 1)
    kept = np.sort(generator.permutation(len(words))[gone:]) if gone > 0 else np.arange(len(words))
    return " ".join(words[place] for place in kept)


def shuffle_words(caption: str, share: float, generator: np.random.Generator) -> str:
    """Return a caption with a share of its words (two at least) moved among their places."""
    words = caption.split()
    chosen = generator.permutation(len(words))[: min(max(round(share * len(words)), 2), len(words))]
    for place, source in zip(chosen, np.roll(chosen, 1), strict=True):
        words[place] = caption.split()[source]
    return " ".join(words)


CHANGES = {"drop": drop_words, "shuffle": shuffle_words}
"""Changes of captions by name."""
