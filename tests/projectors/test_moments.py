"""The algebra below the closed forms, against torch's own."""

import pytest
import torch
from threadpoolctl import threadpool_info

from pipeline.projectors import moments
from pipeline.projectors.moments import eigh, gram


@pytest.mark.parametrize(("rows", "columns"), [(40, 12), (12, 40), (1, 3)])
def test_gram_is_the_product(rows: int, columns: int) -> None:
    x = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for each in (x, x.T, x[:, ::2]):
        assert torch.allclose(gram(each), each.T @ each, atol=1e-12)


@pytest.mark.parametrize("largest", [None, 1, 5, 12, 99])
def test_the_largest_eigenvalues_and_their_vectors(largest: int | None) -> None:
    x = torch.randn(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = x.T @ x
    values, vectors = eigh(matrix, largest)
    count = min(largest or 12, 12)
    assert torch.allclose(values, torch.linalg.eigvalsh(matrix)[-count:])
    assert torch.allclose(matrix @ vectors, vectors * values)
    assert torch.allclose(vectors.T @ vectors, torch.eye(count, dtype=torch.float64))


def test_as_many_threads_as_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with moments._threads():
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
