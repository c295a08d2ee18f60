"""Training W1: goes on exactly where it stopped, follows the worst attack, and gets better."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: `make train-test` runs these")
pytest.importorskip("onnx", reason="no onnx: `make train-test` runs these")

import recipe as recipes  # noqa: E402
import running  # noqa: E402
import shipped  # noqa: E402
import train_w1  # noqa: E402
import validation  # noqa: E402
from discriminator import Discriminator, told_apart  # noqa: E402
from frames import read_pack  # noqa: E402
from marking_w1 import at_ends, mark, networks_of, psnr  # noqa: E402
from pictures import pictures  # noqa: E402
from sampling import NAMES, WorstAttacks  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

pytestmark = pytest.mark.training
Differences = Callable[[Any, Any], list[str]]

ENGINES = Path(recipes.__file__).resolve().parents[1]
RECIPES = Path(recipes.__file__).with_name("recipes")


def small(name: str = "w1_cpu", **changes: dict[str, Any]) -> recipes.W1:
    """Return a recipe for a few steps in which everything is switched on."""
    whole = recipes.table(recipes.read(RECIPES / f"{name}.toml", recipes.W1))
    whole["run"].update(steps=4, batch=3, report_every=2, save_every=10, validate_every=2)
    whole["attacks"].update(refresh_every=2, together=2)
    whole["adversary"].update(starts=0.25, features=4)
    for section, values in changes.items():
        whole[section].update(values)
    return recipes.build(copy.deepcopy(whole), recipes.W1, "test")


def run(recipe: recipes.W1, pack: Path, out: Path, **given: Any) -> dict[str, Any]:
    """Train as the command does, and return the last checkpoint."""
    args = {"pack": pack, "out": out, "start": ENGINES, "device": "cpu", "attacks": None,
            "stop": None, "resume": False, **given}  # fmt: skip
    train_w1.train(recipe, argparse.Namespace(**args))
    return running.load(out / "last.pt")


@pytest.mark.parametrize("way", ["opencv", "torch"])
def test_four_steps_are_two_and_two_after_resuming(
    pack: Path, tmp_path: Path, way: str, differences: Differences
) -> None:
    """Bit for bit: weights, averages, both optimisers, attack losses, every random stream."""
    recipe = small()
    at_once = run(recipe, pack, tmp_path / "once", attacks=way)
    half = run(recipe, pack, tmp_path / "twice", attacks=way, stop=2)
    assert half["step"] == 2
    assert differences(at_once, half), "steps 3 and 4 change nothing: the test would see nothing"
    resumed = run(recipe, pack, tmp_path / "twice", attacks=way, resume=True, start=None)
    assert differences(at_once, resumed) == []


def test_the_gpu_s_way_runs_on_the_cpu(pack: Path, tmp_path: Path) -> None:
    """The recipe for a GPU, its attacks and bfloat16, on the device there is."""
    state = run(small("w1_gpu"), pack, tmp_path)
    assert state["step"] == 4
    before = shipped.checkpoint(ENGINES)["decoder"]["first.weight"]
    assert not torch.equal(state["latest"]["decoder.first.weight"], before)
    assert all(v.isfinite().all() for v in state["latest"].values())


def test_the_run_folder_tells_what_happened(pack: Path, tmp_path: Path) -> None:
    recipe = small()
    run(recipe, pack, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    tables = [row for row in rows if row.get("validated")]
    assert [row["step"] for row in tables] == [0, 2, 4]
    for row in tables:
        assert list(row["attacks"]) == list(validation.suite(np.random.default_rng(0)))
        assert abs(row["psnr_db"] - recipe.validation.every_psnr_db) < 0.1
    best = running.load(tmp_path / "best.pt")
    assert best["best"] == max(row["score"] for row in tables)
    assert recipes.build(best["recipe"], recipes.W1, "best.pt") == recipe
    assert [row["step"] for row in rows if "loss" in row] == [2, 4]
    assert any(abs(sum(row["drawn"].values()) - 1) < 0.01 for row in rows if "drawn" in row)


def test_a_run_is_not_resumed_with_another_recipe(pack: Path, tmp_path: Path) -> None:
    run(small(), pack, tmp_path, stop=2)
    recipes.same(small(), tmp_path / "last.pt")
    with pytest.raises(SystemExit, match="another batch"):
        recipes.same(small(run={"batch": 5}), tmp_path / "last.pt")


def test_training_marks_brings_the_loss_down(pack: Path, tmp_path: Path) -> None:
    """From the shipped weights, six frames, one attack: what is trained for gets better."""
    recipe = small(run={"steps": 30, "batch": 4, "report_every": 10, "validate_every": 99},
                   rates={"network": 3e-3}, adversary={"weight": 0.0},
                   attacks={"severity": [0.3, 0.3], "floor": 1.0})  # fmt: skip
    run(recipe, pack, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


# --- the start: what the node has ---------------------------------------------------------------


def test_the_shipped_networks_are_undone_exactly(real_frames: np.ndarray) -> None:
    """D1 unfolded and E1's strengths give what the ONNX files give, as closely as when exported."""
    onnxruntime = pytest.importorskip("onnxruntime")
    recipe = recipes.read(RECIPES / "w1_cpu.toml", recipes.W1)
    decoder, encoder = networks_of(recipe.model)
    start = shipped.checkpoint(ENGINES)
    decoder.load_state_dict(start["decoder"])
    encoder.load_state_dict(start["encoder"])
    frames = (real_frames[:, None] / 255).astype(np.float32)
    for file, network in (("d1", decoder.normalised), ("strength", encoder.strength)):
        session = onnxruntime.InferenceSession(str(ENGINES / f"{file}.onnx"))
        want = session.run(None, {"frame": frames})[0]
        with torch.no_grad():
            got = network(torch.from_numpy(frames)).numpy().reshape(want.shape)
        assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    patterns = decoder.carrier_patterns().detach().round().numpy()
    assert np.abs(patterns - np.load(ENGINES / "patterns.npy").reshape(patterns.shape)).max() <= 1


def test_training_starts_from_convolutions_without_patterns() -> None:
    recipe = small()
    decoder, encoder = networks_of(recipe.model)
    noise = decoder.patterns.detach().clone()
    start = shipped.start_from(ENGINES / "train" / "start.pt")
    running.fit(decoder, start["decoder"])
    running.fit(encoder, start["encoder"])
    assert torch.equal(decoder.first.weight, start["decoder"]["first.weight"])
    assert torch.equal(encoder.strength.net[2].weight, start["encoder"]["strength.net.2.weight"])
    assert torch.equal(decoder.patterns, noise)


def test_a_start_that_is_not_what_the_card_says_is_refused(tmp_path: Path) -> None:
    for name in ("card.toml", "patterns.npy", "d1.onnx", "strength.onnx"):
        (tmp_path / name).write_bytes((ENGINES / name).read_bytes())
    (tmp_path / "d1.onnx").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="not what the card says"):
        shipped.checkpoint(tmp_path)


# --- worst-attack sampling ----------------------------------------------------------------------


def settings(**changes: Any) -> recipes.Attacks:
    return dataclasses.replace(small().attacks, **changes)


def told(sampler: WorstAttacks, name: str, loss: float) -> None:
    families = torch.arange(len(NAMES))
    sampler.told(families, torch.where(families == NAMES.index(name), loss, 0.1))
    sampler.refresh()


def test_what_is_read_worst_is_drawn_more_often_and_nothing_falls_below_the_floor() -> None:
    sampler = WorstAttacks(settings(floor=0.4, power=2.0, memory=0.0), torch.device("cpu"))
    before = sampler.probability
    told(sampler, "jpeg", 2.0)
    after = sampler.probability
    place = NAMES.index("jpeg")
    assert after[place] > 2 * before[place]
    assert (after >= 0.4 * sampler.even - 1e-12).all()
    assert after.sum() == pytest.approx(1)
    drawn = sampler.drawn(np.random.default_rng(1), 4000)
    assert (drawn == place).mean() == pytest.approx(after[place], abs=0.03)


def test_a_family_that_was_not_met_keeps_its_loss() -> None:
    sampler = WorstAttacks(settings(memory=0.5), torch.device("cpu"))
    sampler.told(torch.tensor([0, 0]), torch.tensor([3.0, 5.0]))
    sampler.refresh()
    assert sampler.recent[0] == 0.5 * 1 + 0.5 * 4
    assert (sampler.recent[1:] == 1).all()


def test_pictures_that_are_attacked_together_get_one_family(pack: Path, tmp_path: Path) -> None:
    start = running.Run(tmp_path, 1)
    for way in ("opencv", "torch"):
        source = pictures(way, read_pack(pack), start, settings(together=3))
        x = source.batch(6).requires_grad_()
        hit, families = source.attacked(x, 1.0)
        assert hit.shape == (6, 1, 128, 128)
        assert families[:3].unique().numel() == families[3:].unique().numel() == 1
        hit.sum().backward()
        assert x.grad.shape == x.shape
        assert (x.grad != 0).any()


class Waits(TorchDispatchMode):
    """Refuses to read a number back from a tensor, which on a GPU waits for all that was asked."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default,
                            torch.ops.aten.nonzero.default), func  # fmt: skip
        return func(*args, **(kwargs or {}))


def test_no_step_reads_anything_back_from_the_device(pack: Path, tmp_path: Path) -> None:
    """Frames, marks, every family of attacks, loss, gradients, losses by family."""
    recipe = small("w1_gpu")
    start = running.Run(tmp_path, 1)
    source = pictures("torch", read_pack(pack), start, settings(together=1, jpeg_after=0.5))
    decoder, encoder = networks_of(recipe.model)
    every = np.arange(len(NAMES))
    source.sampler.drawn = lambda rng, count: every[:count]  # type: ignore[method-assign]
    bits = torch.ones(len(NAMES), 160)
    with Waits():
        x = source.batch(len(NAMES))
        with torch.autocast("cpu", torch.bfloat16):
            patterns = decoder.carrier_patterns()
            norms = patterns.norm(dim=1)
            wanted = torch.full((len(x),), 42.0)
            marked = mark(encoder, x, bits, wanted, patterns, norms, 0.02)
            with torch.autocast("cpu", enabled=False):
                hit, families = source.attacked(marked, 1.0)
            each, _ = train_w1.losses(decoder(hit, patterns, norms), bits, recipe.loss)
        each.mean().backward()
        source.sampler.told(families, each)
    with pytest.raises(AssertionError), Waits():
        each.mean().item()


# --- the adversary, marking, schedules ----------------------------------------------------------


def test_the_discriminator_learns_to_tell_a_strong_mark_and_its_gradient_reaches_it(
    pack: Path,
) -> None:
    torch.manual_seed(1)
    x = torch.from_numpy(read_pack(pack).train[:, None]).float() / 255
    marked = (x + 0.02 * torch.randn(x.shape)).clamp(0, 1).requires_grad_()
    network = Discriminator(8)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    first = told_apart(network, x, marked.detach()).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = told_apart(network, x, marked.detach())
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5 * first
    assert network(x).shape == (len(x), 1, 16, 16)
    network(marked).mean().backward()
    assert (marked.grad != 0).any()


def test_marked_frames_keep_their_psnr_and_their_ends(pack: Path) -> None:
    recipe = small()
    decoder, encoder = networks_of(recipe.model)
    start = shipped.checkpoint(ENGINES)
    decoder.load_state_dict(start["decoder"]), encoder.load_state_dict(start["encoder"])
    x = torch.from_numpy(read_pack(pack).train[:, None]).float() / 255
    bits = torch.where(torch.rand(len(x), 160) < 0.5, -1.0, 1.0)
    with torch.no_grad():
        patterns = decoder.carrier_patterns()
        norms = patterns.norm(dim=1)
        shown = validation.at_psnr(encoder, x, bits, 44.0, patterns, norms)
        free = mark(encoder, x, bits, torch.full((len(x),), 41.0), patterns, norms, 0.02)
    assert (psnr(shown, x) - 44).abs().max() < 0.1
    for marked in (shown, free):
        assert torch.equal(marked[at_ends(x)], x[at_ends(x)])


def test_rates_rise_fall_and_end_at_nothing() -> None:
    rates = [running.one_cycle(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[10] == pytest.approx(1)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert running.ramp(0, 100, 0.4, (0.4, 1.0)) == 0.4
    assert running.ramp(20, 100, 0.4, (0.4, 1.0)) == pytest.approx(0.7)
    assert running.ramp(90, 100, 0.4, (0.4, 1.0)) == pytest.approx(1.0)
