"""Projectors on the disk: the same numbers back, and a clear error for whatever is damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import UnknownNameError, UserError
from pipeline.files import dump_signed, read_json, read_signed
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import LinearProjector
from pipeline.projectors.run_record import (
    PROJECTORS,
    build_projector,
    load_projector,
    save_projector,
)


@pytest.mark.parametrize("name", PROJECTORS)
def test_a_saved_projector_comes_back_with_the_same_bits(name: str, tmp_path: Path) -> None:
    x = torch.randn(9, 6)
    projector = build_projector(name, {"d_in": 6, "d": 6, "normalise_input": "standardise", "blocks": [2, 4]}).eval()
    if isinstance(projector, AsifProjector):
        projector.fill(x[:6])
    projector.fit_input(x)
    save_projector(tmp_path / "seed-1", "image", projector)
    again = load_projector(tmp_path / "seed-1", "image")
    assert torch.equal(again(x), projector(x))
    assert type(again) is type(projector)
    assert not again.training
    assert sorted(p.name for p in (tmp_path / "seed-1").iterdir()) == ["image.json", "image.safetensors"]


def test_loading_spends_no_random_numbers(tmp_path: Path) -> None:
    save_projector(tmp_path, "text", LinearProjector(4, 3))
    state = torch.random.get_rng_state()
    loaded = load_projector(tmp_path, "text")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_saving_again_replaces(tmp_path: Path) -> None:
    for _ in range(2):
        projector = LinearProjector(4, 3)
        save_projector(tmp_path, "image", projector)
    x = torch.randn(2, 4)
    assert torch.equal(load_projector(tmp_path, "image")(x), projector(x))


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    """Return a damage that overwrites fields of the JSON."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(dump_signed({**read_signed(path, "a projector"), **changes}))

    return damage


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def overwrite_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def other_tensors(folder: Path) -> None:
    save_projector(folder / "other", "image", LinearProjector(4, 5))
    (folder / "other" / "image.safetensors").replace(folder / "image.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "image.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "image.json").unlink(), "a file image.json"),
        (lambda folder: (folder / "image.safetensors").unlink(), "a file image.safetensors"),
        (overwrite("image.json", b"{"), "JSON that describes a projector"),
        (overwrite("image.json", b"\xff\xfe"), "JSON that describes a projector"),
        (overwrite("image.json", b"[" * 100_000), "JSON that describes a projector"),
        (overwrite("image.json", b"[]"), "a JSON object"),
        (edit("image.json", format=2), "format 1"),
        (edit("image.json", projector=3), "the field projector"),
        (edit("image.json", settings=None), "the field settings"),
        (edit("image.json", d=5), "d_in 4 and d 5"),
        (edit("image.json", settings={"d_in": 10**12, "d": 10**6}, d_in=10**12, d=10**6), "tensors of a linear"),
        (edit("image.json", settings={"d_in": 4, "d": 3, "rank": 2}), "setting of the linear projector"),
        (edit("image.json", projector="residual_mlp"), "setting of the residual_mlp"),
        (edit("image.json", sha256="0" * 64), "the sha256 0000"),
        (overwrite_text("image.json", '"d": 3', '"d": 4'), "what its digest says"),
        (other_tensors, "the sha256"),
        (cut_short, "the sha256"),
    ],
)
def test_damage_is_told(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    save_projector(tmp_path, "image", LinearProjector(4, 3))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_projector(tmp_path, "image")


def test_an_unknown_projector_lists_the_known_ones(tmp_path: Path) -> None:
    save_projector(tmp_path, "image", LinearProjector(4, 3))
    edit("image.json", projector="perceiver")(tmp_path)
    with pytest.raises(UnknownNameError, match="known projector"):
        load_projector(tmp_path, "image")


def test_a_diverged_projector_is_not_saved(tmp_path: Path) -> None:
    projector = LinearProjector(4, 3)
    with torch.no_grad():
        projector.map.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="finite weights"):
        save_projector(tmp_path, "image", projector)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r"a file run\.json"):
        read_json(tmp_path / "run.json", "a run")
