"""The comparator may be trained anew: no signed bit depends on it, and the node opens it."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: `make train-test` runs these")
pytest.importorskip("onnx", reason="no onnx: `make train-test` runs these")

import comparator  # noqa: E402
import fingerprint_export  # noqa: E402
import fingerprint_scores as scores  # noqa: E402
import recipe as recipes  # noqa: E402
import running  # noqa: E402
from frames import seen  # noqa: E402

from dicom_node.inference.fingerprinter import Fingerprinter, read_fingerprint_card  # noqa: E402

pytestmark = pytest.mark.training

ENGINES = Path(recipes.__file__).resolve().parents[1]
RECIPE = Path(recipes.__file__).with_name("recipes") / "f_check.toml"
Differences = Callable[[Any, Any], list[str]]


@pytest.fixture(scope="module")
def recipe() -> recipes.Comparator:
    table = recipes.table(recipes.read(RECIPE, recipes.Comparator))
    table["run"].update(steps=4, batch=2, save_every=2, validate_every=9)
    table["model"].update(width=8, rounds=1)
    built: recipes.Comparator = recipes.build(table, recipes.Comparator, "f_check")
    return built


def train(recipe: recipes.Comparator, pack: Path, out: Path, **given: Any) -> dict[str, Any]:
    """Train as the command does, and return the last checkpoint."""
    args = {"pack": pack, "out": out, "coder": ENGINES / "f1.onnx", "stop": None, "resume": False}
    comparator.train(recipe, argparse.Namespace(**{**args, **given}))
    return running.load(out / "last.pt")


def test_it_goes_on_exactly_where_it_stopped_and_leaves_the_coder_alone(
    recipe: recipes.Comparator, pack: Path, tmp_path: Path, differences: Differences
) -> None:
    at_once = train(recipe, pack, tmp_path / "once")
    half = train(recipe, pack, tmp_path / "twice", stop=2)
    assert differences(at_once, half)
    assert differences(at_once, train(recipe, pack, tmp_path / "twice", resume=True)) == []
    coder = comparator.shipped_coder(ENGINES / "f1.onnx").state_dict()
    for weights in (at_once["model"], at_once["average"]):
        for name in coder:
            assert torch.equal(weights[f"coder.{name}"], coder[name]), name
        assert weights["rounds.0.second.weight"].abs().max() > 0  # where it started


@pytest.mark.parametrize("name", ["f1_check.onnx", "strength.onnx"])
def test_another_network_is_not_taken_for_the_coder(name: str) -> None:
    with pytest.raises(SystemExit, match="not the coder"):
        comparator.shipped_coder(ENGINES / name)


def test_the_node_opens_what_is_exported_and_codes_as_it_did(
    recipe: recipes.Comparator, pack: Path, real_frames: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The card keeps what it says of the coder, and tells of the comparator beside it."""
    out = tmp_path / "engines"
    out.mkdir()
    for name in ("card.toml", "f1.onnx", "f1_check.onnx"):
        shutil.copy(ENGINES / name, out / name)
    state = train(recipe, pack, tmp_path / "run")
    limits = {"alarm": 3.0, "near": 2.0}
    monkeypatch.setattr(fingerprint_export, "thresholds", lambda *_: limits)
    command = ["fingerprint_export.py", str(tmp_path / "run/last.pt"), "--data", ".", "--out"]
    monkeypatch.setattr(sys, "argv", [*command, str(out)])
    fingerprint_export.main()
    former, card = (
        tomllib.loads((folder / "card.toml").read_text("utf-8")) for folder in (ENGINES, out)
    )
    assert {k: v for k, v in card.items() if k != "fingerprint"} == {
        k: v for k, v in former.items() if k != "fingerprint"
    }
    told = card["fingerprint"]
    assert {name: told[name] for name in limits} == limits
    for name in ("model", "steps", "batch", "seed"):
        assert told[name] == former["fingerprint"][name]
    assert (told["comparator_steps"], told["comparator_batch"]) == (4, 2)
    assert told["files"]["f1.onnx"] == former["fingerprint"]["files"]["f1.onnx"]
    assert told["files"]["f1_check.onnx"] == hashlib.sha256(
        (out / "f1_check.onnx").read_bytes()
    ).hexdigest()
    before, after = (seen(frame) for frame in real_frames[:2])
    network = Fingerprinter(read_fingerprint_card(out))
    code = network.code(before)
    assert (code == Fingerprinter(read_fingerprint_card(ENGINES)).code(before)).all()
    model = comparator.Comparator(comparator.shipped_coder(ENGINES / "f1.onnx"), 8, 1)
    model.load_state_dict(state["average"])
    with torch.no_grad():
        bits = torch.from_numpy(np.where(code, np.float32(1), np.float32(-1)))[None]
        want = model(torch.from_numpy(after)[None, None], bits)[0].numpy()
    assert np.abs(network.changed(after, code) - want).max() < 1e-3 * np.abs(want).max()


def test_a_comparator_of_another_coder_is_not_exported(
    recipe: recipes.Comparator, pack: Path, tmp_path: Path
) -> None:
    state = train(recipe, pack, tmp_path / "run")
    state["average"]["coder.code.bias"] += 0.5
    with pytest.raises(SystemExit, match="another coder"):
        fingerprint_export.networks(state, 8, ENGINES)


def test_an_edit_is_found_if_it_stands_out_above_what_one_calm_frame_in_a_hundred_has() -> None:
    calm = np.zeros((200, 16, 16))
    calm[:3, 4, 4] = 5.0  # three of two hundred
    tense = np.zeros((4, 16, 16))
    tense[:, 8, 8] = 6.0, 5.0, 4.0, 6.0
    marked = np.zeros((4, 16, 16), np.int8)
    marked[:3, 8, 8] = 1  # nothing was changed in the last
    area, found = scores.found_at_one_in_a_hundred(calm, tense, marked)
    assert found == pytest.approx(2 / 3, abs=0.001)
    assert area == pytest.approx(1.0, abs=0.002)


def test_an_edit_below_the_worst_calm_frame_costs_more_than_one_above() -> None:
    marked = torch.zeros(2, 16, 16, dtype=torch.int8)
    marked[1, 8, 8] = 1
    logits = torch.zeros(2, 16, 16)
    logits[0, 2, 2] = 2.0

    def cost(peak: float) -> float:
        return float(comparator.ranked(logits.index_put(
            (torch.tensor(1), torch.tensor(8), torch.tensor(8)), torch.tensor(peak)), marked))

    assert cost(1.0) > cost(2.0) > cost(5.0)
    assert cost(2.0) == pytest.approx(np.log(2), abs=1e-5)
