"""R1 and f go on exactly where they stopped; exporters write what the node opens."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: `make train-test` runs these")
pytest.importorskip("onnx", reason="no onnx: `make train-test` runs these")

import export_r1  # noqa: E402
import export_w1  # noqa: E402
import fingerprint  # noqa: E402
import recipe as recipes  # noqa: E402
import running  # noqa: E402
import shipped  # noqa: E402
import train_r1  # noqa: E402

from dicom_node.inference import open_engine  # noqa: E402
from dicom_node.inference.catalogue import read_card  # noqa: E402

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


def test_r1_goes_on_exactly_where_it_stopped_and_keeps_the_patterns(
    marked: Path, tmp_path: Path, differences: Differences
) -> None:
    recipe = short("r1", recipes.R1)

    def run(folder: str, **given: Any) -> dict[str, Any]:
        args = {"marked": marked, "start": ENGINES, "out": tmp_path / folder, "device": "cpu",
                "stop": None, "resume": False, **given}  # fmt: skip
        train_r1.train(recipe, argparse.Namespace(**args))
        return running.load(tmp_path / folder / "last.pt")

    at_once = run("once")
    half = run("twice", stop=2)
    assert differences(at_once, half)
    assert differences(at_once, run("twice", resume=True, start=None)) == []
    start = shipped.checkpoint(ENGINES)["decoder"]
    assert torch.equal(at_once["reader"]["patterns"], start["patterns"])
    assert not torch.equal(at_once["reader"]["first.weight"], start["first.weight"])


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


def test_a_reader_is_exported_for_its_own_patterns_only(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = train_r1.Reader(160)
    own = running.load(tmp_path / "best.pt")
    reader.load_state_dict(own["decoder"], strict=False)
    state = {"reader": reader.state_dict(), "recipe": {"model": {"code_bits": 160}}}
    command = ["export_r1.py", str(tmp_path / "r1.pt"), "--out", str(exported)]
    monkeypatch.setattr(sys, "argv", command)
    torch.save(state, tmp_path / "r1.pt")
    export_r1.main()
    assert read_card(exported).path("r1.onnx").is_file()
    state["reader"]["patterns"] = state["reader"]["patterns"].roll(1, 1)
    torch.save(state, tmp_path / "r1.pt")
    with pytest.raises(SystemExit, match="other patterns"):
        export_r1.main()
