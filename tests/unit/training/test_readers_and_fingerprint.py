"""R2 and f go on exactly where they stopped; exporters write what the node opens."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: `make train-test` runs these")
pytest.importorskip("onnx", reason="no onnx: `make train-test` runs these")

import export_r2  # noqa: E402
import export_w1  # noqa: E402
import fingerprint  # noqa: E402
import recipe as recipes  # noqa: E402
import running  # noqa: E402
import shipped  # noqa: E402
import train_r2  # noqa: E402
from frames import seen  # noqa: E402
from readers import Reader  # noqa: E402

from dicom_node.inference import open_engine  # noqa: E402
from dicom_node.inference.catalogue import read_card  # noqa: E402
from dicom_node.inference.reader import FILES, WeakReader  # noqa: E402
from dicom_node.watermark import synthesis  # noqa: E402

pytestmark = pytest.mark.training

ENGINES = Path(recipes.__file__).resolve().parents[1]
RECIPES = Path(recipes.__file__).with_name("recipes")
Differences = Callable[[Any, Any], list[str]]


def short(name: str, kind: type, **run: int) -> Any:
    table = recipes.table(recipes.read(RECIPES / f"{name}.toml", kind))
    table["run"].update(steps=4, batch=2, save_every=2, **run)
    return recipes.build(table, kind, name)


@pytest.fixture(scope="module")
def marked(real_frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marked") / "marked.npz"
    words = np.random.default_rng(1).choice([-1, 1], (len(real_frames), 160)).astype(np.int8)
    np.savez(path, pictures=real_frames, words=words)
    return path


@pytest.fixture(scope="module")
def small_marked(marked: Path) -> Path:
    """Frames of 64, 80 and 96 pixels, as mark_frames.py lays them into one array."""
    path = marked.with_name("small.npz")
    with np.load(marked) as whole:
        sides = np.resize([64, 80, 96], len(whole["pictures"]))
        pictures = np.zeros((len(sides), 96, 96), np.uint8)
        for picture, side, frame in zip(pictures, sides, whole["pictures"], strict=True):
            picture[:side, :side] = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
        np.savez(path, pictures=pictures, words=whole["words"], sides=sides)
    return path


def train_reader(recipe: recipes.R2, marked: Path, out: Path, **given: Any) -> dict[str, Any]:
    """Train as the command does, and return the last checkpoint."""
    args = {"marked": marked, "test": marked, "patterns": ENGINES / "patterns.npy", "out": out,
            "start": None, "device": "cpu", "stop": None, "resume": False, **given}  # fmt: skip
    train_r2.train(recipe, argparse.Namespace(**args))
    return running.load(out / "last.pt")


@pytest.mark.parametrize("name", ["r2", "r2_small"])
def test_r2_goes_on_exactly_where_it_stopped_and_keeps_the_patterns(
    name: str, marked: Path, small_marked: Path, tmp_path: Path, differences: Differences
) -> None:
    recipe = short(name, recipes.R2, validate_every=2)
    folds, marked = (1, marked) if name == "r2" else (2, small_marked)
    assert recipe.model.folds == folds
    at_once = train_reader(recipe, marked, tmp_path / "once")
    half = train_reader(recipe, marked, tmp_path / "twice", stop=2)
    assert differences(at_once, half)
    resumed = train_reader(recipe, marked, tmp_path / "twice", resume=True)
    assert differences(at_once, resumed) == []
    assert recipes.build(at_once["recipe"], recipes.R2, "last.pt") == recipe
    patterns = carriers(folds)
    for weights in (at_once["reader"], at_once["latest"]):
        assert np.array_equal(weights["patterns"].numpy(), patterns)
        assert weights["last.weight"].abs().max() > 0  # where it started
    rows = [json.loads(row) for row in (tmp_path / "once/log.jsonl").read_text("utf-8").split("\n")
            if row]  # fmt: skip
    told = [row for row in rows if row.get("validated")]
    assert [row["step"] for row in told] == [2, 4]
    for row in told:
        looked_at = train_r2.LOOKED_AT if folds == 1 else train_r2.SMALL_LOOKED_AT
        assert list(row["agreement_and_above_06"]) == list(looked_at)


def carriers(folds: int) -> np.ndarray:
    """Return the carrier patterns as the node folds them, ``(160, samples)``."""
    whole = np.load(ENGINES / "patterns.npy").astype(np.int32)
    return np.stack([synthesis.folded(each.reshape(-1), folds) for each in whole])


def test_r2_can_start_from_the_shipped_one_whatever_its_patterns(
    small_marked: Path, tmp_path: Path
) -> None:
    recipe = short("r2_small", recipes.R2, validate_every=9)
    trained = train_reader(recipe, small_marked, tmp_path, start=ENGINES, stop=1)["latest"]
    before = shipped.reader(ENGINES).state_dict()
    assert torch.allclose(trained["second.weight"], before["second.weight"], atol=1e-3)
    assert np.array_equal(trained["patterns"].numpy(), carriers(2))


def test_r2_can_start_from_a_checkpoint_and_is_looked_at_before_any_step(
    small_marked: Path, tmp_path: Path
) -> None:
    recipe = short("r2_small", recipes.R2, validate_every=2)
    first = train_reader(recipe, small_marked, tmp_path / "first")
    looked = argparse.Namespace(
        marked=small_marked, test=small_marked, patterns=ENGINES / "patterns.npy",
        out=tmp_path / "looked", start=tmp_path / "first" / "last.pt", device="cpu", stop=0,
        resume=False,
    )  # fmt: skip
    train_r2.train(recipe, looked)
    rows = [json.loads(row) for out in ("first", "looked")
            for row in (tmp_path / out / "log.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
    at_the_end, at_the_start = rows[-2:]
    assert at_the_start["step"] == 0
    assert at_the_start["agreement_and_above_06"] == at_the_end["agreement_and_above_06"]
    again = train_reader(recipe, small_marked, tmp_path / "again", start=looked.start, stop=1)
    assert torch.allclose(
        again["latest"]["second.weight"], first["reader"]["second.weight"], atol=1e-3
    )


def test_the_fingerprint_goes_on_exactly_where_it_stopped(
    pack: Path, tmp_path: Path, differences: Differences, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short("f", recipes.Fingerprint, validate_every=9)
    looks: list[int] = []
    monkeypatch.setattr(fingerprint, "look", lambda *_: looks.append(1) or {})

    def run(folder: str, **given: Any) -> dict[str, Any]:
        args = {"pack": pack, "out": tmp_path / folder, "stop": None, "resume": False, **given}
        fingerprint.train(recipe, argparse.Namespace(**args))
        return running.load(tmp_path / folder / "last.pt")

    at_once = run("once")
    half = run("twice", stop=2)
    assert differences(at_once, half)
    assert differences(at_once, run("twice", resume=True)) == []
    assert len(looks) == 2


def test_figures_of_the_fingerprint_are_told_for_every_kind_of_tampering(pack: Path) -> None:
    frames = np.load(pack)["test"]
    model = fingerprint.Fingerprint(8, 32)
    table = fingerprint.look(model, frames, fingerprint.mark_fields(2))
    assert list(table) == ["2 bits", "4 bits", "6 bits", "8 bits"]
    for row in table.values():
        assert set(row) == set(fingerprint.pairs.TAMPERING)


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what export_w1.py makes of the shipped weights under today's recipe."""
    out, checkpoint = tmp_path / "engines", tmp_path / "best.pt"
    recipe = recipes.table(recipes.read(RECIPES / "w1_cpu.toml", recipes.W1))
    state = {**shipped.checkpoint(ENGINES), "step": 7, "recipe": recipe}
    torch.save(state, checkpoint)
    monkeypatch.setattr(sys, "argv", ["export_w1.py", str(checkpoint), "--out", str(out)])
    export_w1.main()
    return out


def test_the_node_opens_what_is_exported_and_the_card_tells_the_recipe(
    exported: Path, real_frames: np.ndarray
) -> None:
    engine, shipped_one = open_engine("onnx", exported), open_engine("onnx", ENGINES)
    assert engine.loop == shipped_one.loop
    frames = (real_frames[:, None] / 255).astype(np.float32)
    ours, theirs = engine.whiten(frames), shipped_one.whiten(frames)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
    training = tomllib.loads((exported / "card.toml").read_text("utf-8"))["training"]
    assert training["steps"] == 7
    recipe = recipes.read(RECIPES / "w1_cpu.toml", recipes.W1)
    told = {name: training[name] for name in recipes.table(recipe)}
    assert recipes.build(told, recipes.W1, "card.toml") == recipe


@pytest.mark.parametrize(("folds", "file"), FILES.items())
def test_a_reader_is_exported_for_its_own_patterns_only_and_the_node_opens_it(
    folds: int, file: str, exported: Path, real_frames: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(1)
    patterns = torch.from_numpy(carriers(folds))
    reader = Reader(patterns, 6, 5)
    for layer in (reader.last, reader.places.gates):  # they start at nothing
        torch.nn.init.normal_(layer.weight, std=0.1)
    state = {"reader": reader.state_dict(), "recipe": {"model": {"width": 6, "hidden": 5}}}
    command = ["export_r2.py", str(tmp_path / "r2.pt"), "--out", str(exported)]
    monkeypatch.setattr(sys, "argv", command)
    torch.save(state, tmp_path / "r2.pt")
    export_r2.main()
    opened = WeakReader(read_card(exported).path(file), 128 // folds)
    pictures = np.stack([seen(frame, opened.side) for frame in real_frames])[:, None]
    with torch.no_grad():
        want = reader.normalised(torch.from_numpy(pictures)).numpy()
    assert np.abs(opened.whiten(pictures) - want).max() < 1e-3 * np.abs(want).max()
    export_r2.main()
    assert (exported / "card.toml").read_text("utf-8").count(file) == 1
    state["reader"]["patterns"] = state["reader"]["patterns"].roll(1, 1)
    torch.save(state, tmp_path / "r2.pt")
    before = (exported / file).read_bytes()
    with pytest.raises(SystemExit, match="other patterns"):
        export_r2.main()
    assert (exported / file).read_bytes() == before
    command.append("--other-patterns")  # whoever has looked: layers hold no pattern
    export_r2.main()
    opened = WeakReader(exported / file, 128 // folds)
    assert np.abs(opened.whiten(pictures) - want).max() < 1e-3 * np.abs(want).max()


def test_the_shipped_reader_written_again_says_the_same(
    real_frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last layer is folded in the file, and taken apart before it is folded again."""
    for name in ("card.toml", "patterns.npy"):
        shutil.copy(ENGINES / name, tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["export_r2.py", str(ENGINES), "--out", str(tmp_path)])
    export_r2.main()
    opened, before = (WeakReader(folder / "r2.onnx", 128) for folder in (tmp_path, ENGINES))
    pictures = np.stack([seen(frame, opened.side) for frame in real_frames])[:, None]
    want = before.whiten(pictures)
    assert np.abs(opened.whiten(pictures) - want).max() < 1e-4 * np.abs(want).max()
