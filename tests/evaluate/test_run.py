"""The stage as a whole: files, names, the report's safety and balance, and hostile input."""

import csv
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DamagedStoreError, KeyMismatchError, MissingExtraError, UnknownNameError, UserError
from pipeline.evaluate.compare import compare
from pipeline.evaluate.config import EvaluateConfig, ZeroShotConfig
from pipeline.evaluate.output import read_queries
from pipeline.evaluate.run import evaluate
from pipeline.progress import Update

VOID = {"meta", "img", "link", "br", "hr", "input"}
LAYER_PAIRS = {
    "metric": "mutual_knn",
    "k": 5,
    "rows": 10,
    "image_layers": ["block.0", "output"],
    "text_layers": ["block.0", "<script>layer</script>"],
    "score": [[0.1, 0.2], [0.3, 0.4]],
    "calibrated": [[0.0, 0.1], [0.2, 0.3]],
    "chosen": [1, 1],
}


class Balance(HTMLParser):
    """Collects what a page opens, closes and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.text: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.loads.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_page(path: Path) -> Balance:
    text = path.read_text(encoding="utf-8")
    page = Balance()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.scripts == 1
    assert page.handlers == []
    assert all(link.startswith(("#", "data:image/")) for link in page.loads)
    assert not re.search(r"url\((?!#)|@import|<link|<iframe|<object|<base", text)
    assert "alert(" not in text.replace("&lt;script&gt;alert(", "")
    return page


def settings(world: Any, *runs: Path, **changes: Any) -> EvaluateConfig:
    values: dict[str, Any] = {
        "runs": runs,
        "image": (world.image,),
        "text": (world.text,),
        "out": world.root / "out",
        "bootstrap": 100,
        "examples": 3,
    }
    return EvaluateConfig(**(values | changes))


def test_one_run_is_flat_and_names_what_it_stands_on(world: Any) -> None:
    told: list[Update] = []
    values = evaluate(settings(world, world.add_run("info_nce")), told.append)
    out = world.root / "out"
    assert values == json.loads((out / "metrics.json").read_text())
    assert values["n"] == values["gallery_images"] == 20
    assert values["captions"] == values["gallery_texts"]
    assert values["captions_per_image"] == values["captions"] / 20
    assert values["tie_rule"] == "ties count against the query"
    assert values["seeds"] == 2
    for name in ("image_retrieval_recall@1", "text_retrieval_recall@10", "acc1", "mean_per_class_recall"):
        assert 0 <= values[name] <= 1
        assert values[f"{name}_std"] >= 0
    assert any("report.html" in str(update) for update in told)
    check_page(out / "report.html")


def test_what_comes_back_is_the_metrics_and_knows_the_report(
    world: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluate(settings(world, world.add_run("fewpairs", noise=0.05), world.add_run("info_nce", noise=2.0)))
    out = world.root / "out"
    assert found == found.metrics == json.loads((out / "metrics.json").read_text())
    assert type(found.metrics) is dict
    assert (out / "report.md").read_text().startswith(f"# {found.verdict.split(':')[0].replace('_', chr(92) + '_')}")
    assert repr(found) == f"<Evaluation of fewpairs, info_nce on 20 images; {out}>"
    found.show()
    said = capsys.readouterr().out
    assert said.startswith((out / "metrics.md").read_text())
    assert f"\n{found.verdict}\nA small test set. With 20 test images the mean of both directions of fewpairs" in said
    assert said.endswith(f"Report: {out / 'report.html'}\n")
    assert found.warning in said
    html = found._repr_html_()
    assert html.count("<tr>") == 3
    assert "<td>fewpairs</td>" in html
    frames: list[Any] = []
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=frames.append))
    found.to_pandas()
    with (out / "metrics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [{name: str(value) for name, value in row.items()} for row in frames[0]] == rows
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"'pandas' .* run: pip install pandas"):
        found.to_pandas()


def test_metrics_follow_from_the_table_of_queries(world: Any) -> None:
    evaluate(settings(world, world.add_run("info_nce"), world.add_run("cca", steps=0, noise=0.1)))
    out = world.root / "out"
    values = json.loads((out / "metrics.json").read_text())
    tables = read_queries(out)
    assert set(values) == set(tables) == {"info_nce", "cca"}
    for run, directions in tables.items():
        for direction in ("image_retrieval", "text_retrieval"):
            by_seed = (directions[direction].ranks <= 5).mean(1)
            assert values[run][f"{direction}_recall@5"] == by_seed.mean()
            assert values[run][f"{direction}_recall@5_std"] == by_seed.std(ddof=1)
    with (out / "metrics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert all(
        float(row["low"]) <= float(row["mean"]) + 1e-9 and float(row["mean"]) <= float(row["high"]) + 1e-9
        for row in rows
    )
    for name, columns in (
        ("differences.csv", ["run", "against", "measure", "value", "low", "high", "p_value"]),
        ("plots/recall_at_k.csv", ["run", "direction", "k", "recall"]),
    ):
        with (out / name).open(encoding="utf-8") as stream:
            assert csv.DictReader(stream).fieldnames == columns
    assert "| info_nce |" in (out / "metrics.md").read_text()
    assert compare(out, out)


def test_same_settings_same_numbers(world: Any) -> None:
    run = world.add_run("info_nce")
    first = evaluate(settings(world, run))
    kept = {
        name: (world.root / "out" / name).read_bytes() for name in ("metrics.json", "metrics.csv", "per_query.parquet")
    }
    assert evaluate(settings(world, run)) == first
    assert {name: (world.root / "out" / name).read_bytes() for name in kept} == kept


def test_several_runs_with_everything(world: Any) -> None:
    record = {"layer_scores": "layer_pairs.json", "temperature": 0.05}
    runs = [world.add_run("info_nce"), world.add_run("structure", noise=0.1, **record)]
    fitted = {"temperature": 0.03, "temperature_source": "validation"}
    runs += [
        world.add_run("cca", steps=0, seeds=(1,), **fitted),
        world.add_run("ridge", steps=0, seeds=(1,), noise=0.9),
    ]
    (runs[1] / "layer_pairs.json").write_text(json.dumps(LAYER_PAIRS))
    extra = ZeroShotConfig(name="other", image=(world.image,), classes=(world.text / "classes",), split="val")
    notes = ("<script>alert(1)</script>",)
    values = evaluate(settings(world, *runs, zero_shot=(extra,), notes=notes, title="<script>alert(2)</script>"))
    assert set(values) == {"info_nce", "structure", "cca", "ridge"}
    assert "other/acc1" in values["cca"]
    assert values["cca"]["image_retrieval_recall@1_std"] is None
    page = check_page(world.root / "out" / "report.html")
    text = " ".join("".join(page.text).split())
    for heading in ("Results", "Significance", "Zero-shot classification", "Layers", "Training"):
        assert heading in text
    assert "<script>alert(1)</script>" in text  # shown as text
    assert "<b>owl</b>" in text
    assert "The temperature of cca was fitted on validation captions" in text
    assert "no temperature of their own; 0.07 is used" in text
    assert any(link.startswith("data:image/jpeg;base64,") for link in page.loads)
    assert (world.root / "out" / "plots" / "history.csv").read_text().startswith("run,seed,step")
    with (world.root / "out" / "plots" / "layer_pairs.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 4


def test_without_classes_pictures_and_examples(make_world: Callable[..., Any]) -> None:
    world = make_world(pictures=False)
    import shutil

    shutil.rmtree(world.data)
    shutil.rmtree(world.text / "classes")
    values = evaluate(settings(world, world.add_run("info_nce", seeds=(1,))))
    assert "acc1" not in values
    page = check_page(world.root / "out" / "report.html")
    text = " ".join("".join(page.text).split())
    assert "Pictures are left out" in text
    assert "One seed" in text
    assert not any(link.startswith("data:image/jpeg") for link in page.loads)
    evaluate(settings(world, world.add_run("info_nce", seeds=(1,)), examples=0))
    check_page(world.root / "out" / "report.html")


def test_a_single_test_image(make_world: Callable[..., Any]) -> None:
    world = make_world(images=2)
    values = evaluate(settings(world, world.add_run("info_nce")))
    assert values["image_retrieval_recall@1"] == 1.0
    assert values["n"] == 1
    check_page(world.root / "out" / "report.html")


def test_runs_of_one_method_are_called_by_their_folders(world: Any) -> None:
    runs = [world.add_run("n-100", method="info_nce"), world.add_run("n-200", method="info_nce")]
    assert set(evaluate(settings(world, *runs))) == {"n-100", "n-200"}
    with pytest.raises(UserError, match="more than once"):
        evaluate(settings(world, runs[0], runs[0]))


def test_split_that_was_trained_on_is_called_out(world: Any) -> None:
    run = world.add_run("info_nce", config={"train_split": "test"})
    evaluate(settings(world, run))
    text = " ".join("".join(check_page(world.root / "out" / "report.html").text).split())
    assert "The split test was not held out" in text


def test_hostile_input_is_one_sentence(make_world: Callable[..., Any]) -> None:
    world = make_world()
    run = world.add_run("info_nce")
    blind = world.add_run("blind", layers={"image": ["block.7"], "text": ["output"]})
    extra = ZeroShotConfig(name="x", image=(world.image,), classes=(world.text,))
    cases: list[tuple[EvaluateConfig, type[UserError], str]] = [
        (settings(world, run, split="tset"), UnknownNameError, "'tset'; did you mean 'test'"),
        (settings(world, world.root / "nothing"), UserError, "expected a (finished )?run"),
        (settings(world, run, image=(world.text,)), UserError, "expected a store of image features"),
        (settings(world, run, text=(world.root,)), UserError, "expected a feature store"),
        (settings(world, run, image=(world.image, world.image)), UserError, r"expected 1 image store\(s\)"),
        (settings(world, blind), UnknownNameError, "known stored layer"),
        (settings(world, run, zero_shot=(extra,)), UserError, "expected prompts of two classes at least"),
    ]
    for config, kind, message in cases:
        with pytest.raises(kind, match=message):
            evaluate(config)
        assert not (world.root / "out" / "report.html").exists()


def test_a_store_of_another_key_is_refused(make_world: Callable[..., Any]) -> None:
    from tests.evaluate.conftest import write_store

    world = make_world()
    run = world.add_run("info_nce")
    features = {name: values.astype(np.float32) for name, values in world.image_features.items()}
    other = world.root / "other"
    write_store(other, "image", world.image_samples, features, preprocessing={"size": 9})
    with pytest.raises(KeyMismatchError, match=r"preprocessing.size = 8, found preprocessing.size = 9"):
        evaluate(settings(world, run, image=(other,)))


def test_a_damaged_shard_is_named(make_world: Callable[..., Any]) -> None:
    world = make_world()
    run = world.add_run("info_nce")
    shard = sorted(world.image.glob("00001-*.h5"))[0]
    data = bytearray(shard.read_bytes())
    data[-40:] = bytes(40)
    shard.write_bytes(bytes(data))
    with pytest.raises(DamagedStoreError, match=shard.name):
        evaluate(settings(world, run))


def test_captions_of_other_images_are_no_pairs(make_world: Callable[..., Any]) -> None:
    from pipeline.store.samples import Samples
    from tests.evaluate.conftest import write_store

    world = make_world()
    run = world.add_run("info_nce")
    texts = world.text_samples
    stray = Samples(texts.sample_id, ["?"] * len(texts), texts.split, texts.label, texts.content)
    features = {name: values.astype(np.float32) for name, values in world.text_features.items()}
    other = world.root / "stray"
    write_store(other, "text", stray, features)
    with pytest.raises(UserError, match="expected captions of the images in split test"):
        evaluate(settings(world, run, text=(other,)))
