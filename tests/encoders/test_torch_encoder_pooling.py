"""Pooling against loops over samples and tokens."""

import numpy as np
import pytest
import torch

from pipeline.encoders.torch_encoder import TOKEN_POOLS, Tokens, global_average

TOKENS = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 6, 4)).astype(np.float32))
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
LEFT = RIGHT.flip(1)


def slow(rule: str, tokens: torch.Tensor, mask: torch.Tensor | None, prefix: int) -> torch.Tensor:
    rows = []
    for number, row in enumerate(tokens):
        real = [token for place, token in enumerate(row) if mask is None or mask[number, place]]
        patches = list(row)[prefix:]
        vectors = {
            "cls": real[0],
            "eos": real[-1],
            "mean": torch.stack(real).sum(dim=0) / len(real),
            "patch_mean": torch.stack(patches).sum(dim=0) / len(patches),
        }
        rows.append(torch.cat([vectors[name] for name in rule.split("+")]))
    return torch.stack(rows)


@pytest.mark.parametrize("mask", [None, RIGHT, LEFT], ids=["no mask", "padded right", "padded left"])
@pytest.mark.parametrize("rule", ["cls", "eos", "mean"])
def test_texts(rule: str, mask: torch.Tensor | None) -> None:
    pooled = TOKEN_POOLS[rule](TOKENS, Tokens(mask=mask))
    torch.testing.assert_close(pooled, slow(rule, TOKENS, mask, 0))


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("rule", ["patch_mean", "cls+patch_mean"])
def test_patches_leave_class_token_and_registers_out(rule: str, prefix: int) -> None:
    pooled = TOKEN_POOLS[rule](TOKENS, Tokens(prefix=prefix))
    torch.testing.assert_close(pooled, slow(rule, TOKENS, None, prefix))


def test_what_stands_at_padding_does_not_count() -> None:
    spoilt = torch.where(RIGHT[..., None].bool(), TOKENS, torch.nan)
    torch.testing.assert_close(TOKEN_POOLS["mean"](spoilt, Tokens(mask=RIGHT)), slow("mean", TOKENS, RIGHT, 0))


def test_the_end_can_be_said() -> None:
    pooled = TOKEN_POOLS["eos"](TOKENS, Tokens(mask=RIGHT, ends=torch.tensor([2, 0, 0])))
    torch.testing.assert_close(pooled, torch.stack([TOKENS[0, 2], TOKENS[1, 0], TOKENS[2, 0]]))


def test_sums_run_in_float32() -> None:
    ones = torch.full((1, 4096, 1), 1.001, dtype=torch.bfloat16)
    for rule in ("mean", "patch_mean"):
        assert TOKEN_POOLS[rule](ones, Tokens()).dtype == torch.float32


def test_global_average() -> None:
    maps = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 4, 5)).astype(np.float32))
    expected = torch.from_numpy(maps.numpy().reshape(2, 3, 20).mean(axis=2))
    torch.testing.assert_close(global_average(maps), expected)
    torch.testing.assert_close(global_average(maps.permute(0, 2, 3, 1), channels_last=True), expected)
