"""Training steps written by hand in plain torch, for `benchmarks.step` to compare with: a function a method.

Each returns a step of linear projectors (1280 and 384 wide to d) on one batch that stays the same: forward, backward,
gradient clipped to norm 1, `torch.optim.AdamW`. Written as one would in a notebook, with what torch offers for the
purpose (`F.cross_entropy` with label smoothing, `torch.var`, `F.kl_div`), nothing logged, no option looked at.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_WIDTH, TEXT_WIDTH = 1280, 384
Step = Callable[[], None]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def features(rows: int) -> tuple[Tensor, Tensor]:
    """Return random image and text features."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, IMAGE_WIDTH, generator=generator), torch.randn(rows, TEXT_WIDTH, generator=generator)


def bare_step(method: str, rows: int, d: int) -> Step:
    """Return one step of a method by hand."""
    image, text = nn.Linear(IMAGE_WIDTH, d), nn.Linear(TEXT_WIDTH, d)
    tau = nn.Parameter(torch.tensor(-2.66))
    parameters = [*image.parameters(), *text.parameters(), tau]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    x, y = features(rows)
    noise, loss_of = 0.1 if method in ("modest_align", "combined") else 0.0, _losses()[method]

    def step() -> None:
        u = F.normalize(image(_noisy(x, noise)), dim=1)
        w = F.normalize(text(_noisy(y, noise)), dim=1)
        loss = loss_of(u, w, tau.exp(), x, y)
        if method == "structure":
            loss = loss + 5 * (_structure(x, u) + _structure(y, w))
        if method == "combined":  # on the clean batch
            clean = F.normalize(image(x), dim=1), F.normalize(text(y), dim=1)
            loss = loss + 5 * (_structure(x, clean[0]) + _structure(y, clean[1]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


def _losses() -> dict[str, Loss]:
    state: dict[str, Tensor] = {}

    def plain(u: Tensor, w: Tensor, tau: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits, labels = u @ w.T / tau, torch.arange(len(u))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def smoothed(u: Tensor, w: Tensor, tau: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits, labels = u @ w.T / tau, torch.arange(len(u))
        rows = F.cross_entropy(logits, labels, label_smoothing=0.1)
        return (rows + F.cross_entropy(logits.T, labels, label_smoothing=0.1)) / 2

    def weighted(u: Tensor, w: Tensor, tau: Tensor, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        cosines, labels = u @ w.T, torch.arange(len(u))
        logits = cosines / tau
        with torch.no_grad():
            found = torch.stack([cosines.var(dim=axis, correction=0).mean() for axis in (1, 0)])
            state["m"] = 0.9 * state.get("m", found) + 0.1 * found
            share = (state["m"] / state["m"].sum()).clamp(0.1, 0.9)
        rows = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return share[0] * rows + share[1] * F.cross_entropy(logits.T, labels, label_smoothing=smoothing)

    def combined(u: Tensor, w: Tensor, tau: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return weighted(u, w, tau, x, y, 0.1)

    return {
        "info_nce": plain,
        "modest_align": smoothed,
        "variance_aware": weighted,
        "structure": plain,
        "combined": combined,
    }


def _noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5 * torch.randn_like(x) if sigma else x


def _structure(x: Tensor, a: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the two softmaxes over self-similarity, the frozen one without gradient."""
    with torch.no_grad():
        log_p = _log_neighbours(x)
    log_q = _log_neighbours(a)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    halves = [F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)]
    return (halves[0] + halves[1]) / 2


def _log_neighbours(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    centred = unit - unit.mean(dim=0)
    return torch.log_softmax(centred @ centred.T / 0.05, dim=1)
