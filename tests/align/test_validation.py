"""What training looks at between its steps: the recalls of the metrics, ties counted against, nothing disturbed."""

import pytest
import torch

from pipeline.align.fit import quick_recalls, selection_score, validate
from pipeline.align.pairs import PairFeatures
from pipeline.errors import UserError
from pipeline.projectors.run_record import build_projector


def pairs(images: int, counts: torch.Tensor, seed: int = 0) -> PairFeatures:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(images, 5, generator=generator)
    text = latent.repeat_interleave(counts, 0)
    text = text + 0.8 * torch.randn(text.shape, generator=generator)
    return PairFeatures(latent, text, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))


@pytest.mark.parametrize("most", [1 << 25, 10], ids=["one matrix", "blocked"])
@pytest.mark.parametrize("counts", [[1] * 30, [3] * 30, [1, 2, 5] * 10], ids=["one", "three", "mixed"])
def test_quick_recalls_are_those_of_the_metrics(counts: list[int], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.align.fit.MOST_SCORES", most)
    data = pairs(30, torch.tensor(counts))
    image = text = build_projector("identity", {"d_in": 5})
    exact = validate(image, text, data)
    quick = quick_recalls(image, text, data)
    recalls = {name: value for name, value in exact.items() if "_recall@" in name}
    assert {name: quick[name] for name in recalls} == pytest.approx(recalls)
    assert 0 < quick["text_retrieval_recall@1"] < 1
    assert selection_score(quick) == pytest.approx(selection_score(exact))


def test_ties_count_against_the_match() -> None:
    data = PairFeatures(torch.ones(12, 5), torch.ones(12, 5), torch.arange(13))
    image = text = build_projector("identity", {"d_in": 5})
    assert set(quick_recalls(image, text, data).values()) == {0.0}


def test_cuts_above_the_gallery_are_left_out() -> None:
    image = text = build_projector("identity", {"d_in": 5})
    names = quick_recalls(image, text, pairs(6, torch.ones(6, dtype=torch.int64)))
    assert [name[-2:] for name in names] == ["@1", "@5"] * 2


def test_training_state_stays() -> None:
    image, text = (build_projector("residual_mlp", {"d_in": 5, "d": 4, "dropout": 0.5}) for _ in range(2))
    image.train()
    text.eval()
    data = pairs(8, torch.ones(8, dtype=torch.int64))
    assert quick_recalls(image, text, data) == quick_recalls(image, text, data)
    assert image.training
    assert not text.training


def test_embeddings_that_are_not_finite_are_no_perfect_match() -> None:
    data = pairs(8, torch.ones(8, dtype=torch.int64))
    data.image[3, 2] = torch.nan
    image = text = build_projector("identity", {"d_in": 5})
    with pytest.raises(UserError, match="finite"):
        quick_recalls(image, text, data)
