"""New weights must not strand old marks: a record finds the patterns it was made with."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cpu_lanes import real_frames

from dicom_node.errors import EngineError, WatermarkError
from dicom_node.inference import catalogue, open_engine
from dicom_node.inference.base import Int8
from dicom_node.inference.catalogue import patterns_for, patterns_id
from dicom_node.watermark import robust, synthesis
from dicom_node.watermark.synthesis import RobustRecord

OLD = np.random.default_rng(11).integers(-127, 128, (96, 64 * 64), dtype=np.int8)  # another shape


@pytest.fixture(autouse=True)
def forgotten() -> None:
    patterns_for.cache_clear()


def install(folder: Path, former: Int8) -> bytes:
    """Put the installed networks into `folder`, with one former model; return its id."""
    source = catalogue.folder()
    for name in ("card.toml", *catalogue.read_card(source).files):
        shutil.copy(source / name, folder / name)
    model_id = patterns_id(former)
    name = f"patterns/{model_id.hex()}.npy"
    (folder / "patterns").mkdir(exist_ok=True)
    np.save(folder / name, former)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = (folder / "card.toml").read_text("utf-8").split("\n[former]")[0]
    (folder / "card.toml").write_text(f'{text}\n[former]\n"{name}" = "{digest}"\n', "utf-8")
    return model_id


def test_the_present_patterns_are_found_by_the_id_in_new_records() -> None:
    engine = open_engine("onnx")
    np.testing.assert_array_equal(patterns_for(engine.model_id), engine.patterns)


def test_the_patterns_of_a_former_model_are_found_whatever_their_shape(tmp_path: Path) -> None:
    model_id = install(tmp_path, OLD)
    np.testing.assert_array_equal(patterns_for(model_id, tmp_path), OLD)
    present = catalogue.load_patterns(catalogue.read_card(tmp_path))
    np.testing.assert_array_equal(patterns_for(patterns_id(present), tmp_path), present)


def test_a_mark_of_a_former_model_comes_off_bit_for_bit(tmp_path: Path) -> None:
    model_id = install(tmp_path, OLD)
    rng = np.random.default_rng(12)
    host = (real_frames()[0, 0] * 4095).astype(np.int32)
    record = RobustRecord(
        model_id, rng.integers(-31, 32, 96).astype(np.int8),
        rng.integers(0, 8, (16, 16)).astype(np.uint8), synthesis.fixed_point(0.05),
        synthesis.fixed_point(0.0005), np.empty(0, np.int64),
    )  # fmt: skip
    delta = synthesis.delta_of(record, OLD, *host.shape)
    marked, exceptions = synthesis.apply(host, delta, 0, 4095, None)
    assert np.abs(marked - host).max() > 0
    stored = RobustRecord.from_bytes(
        RobustRecord(**{**vars(record), "exceptions": exceptions}).to_bytes()
    )
    found = patterns_for(stored.model_id, tmp_path)
    restored = robust.remove(marked, stored, found, stored.model_id, 0, 4095, None)
    np.testing.assert_array_equal(restored, host)
    present = open_engine("onnx")
    with pytest.raises(WatermarkError, match=model_id.hex()):
        robust.remove(marked, stored, present.patterns, present.model_id, 0, 4095, None)


def test_an_unknown_model_is_named_with_those_that_are_here(tmp_path: Path) -> None:
    model_id = install(tmp_path, OLD)
    present = patterns_id(catalogue.load_patterns(catalogue.read_card(tmp_path)))
    with pytest.raises(EngineError, match="restore with the version that marked it") as refused:
        patterns_for(b"\x00\x01\x02\x03", tmp_path)
    for each in (b"\x00\x01\x02\x03", model_id, present):
        assert each.hex() in str(refused.value)


def test_former_patterns_altered_by_one_bit_are_refused(tmp_path: Path) -> None:
    model_id = install(tmp_path, OLD)
    path = tmp_path / "patterns" / f"{model_id.hex()}.npy"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(bytes(blob))
    with pytest.raises(EngineError, match="altered or damaged"):
        patterns_for(model_id, tmp_path)


def test_former_patterns_under_another_models_name_are_refused(tmp_path: Path) -> None:
    model_id = install(tmp_path, OLD)
    other = install(tmp_path, -np.maximum(OLD, -127))
    names = [tmp_path / "patterns" / f"{each.hex()}.npy" for each in (model_id, other)]
    shutil.copy(names[0], names[1])
    digest = hashlib.sha256(names[1].read_bytes()).hexdigest()
    text = (tmp_path / "card.toml").read_text("utf-8").split("\n[former]")[0]
    (tmp_path / "card.toml").write_text(
        f'{text}\n[former]\n"patterns/{other.hex()}.npy" = "{digest}"\n', "utf-8"
    )
    with pytest.raises(EngineError, match=f"are not the patterns {other.hex()}"):
        patterns_for(other, tmp_path)


def test_missing_former_patterns_are_named(tmp_path: Path) -> None:
    model_id = install(tmp_path, OLD)
    (tmp_path / "patterns" / f"{model_id.hex()}.npy").unlink()
    with pytest.raises(EngineError, match=rf"{model_id.hex()}\.npy: cannot be read"):
        patterns_for(model_id, tmp_path)


def test_patterns_are_read_once_and_nobody_can_change_them() -> None:
    model_id = open_engine("onnx").model_id
    patterns = patterns_for(model_id)
    assert patterns_for(model_id) is patterns
    with pytest.raises(ValueError, match="read-only"):
        patterns[0, 0] = 1


def test_every_former_model_on_the_installed_card_is_there() -> None:
    for name in catalogue.read_card().former:
        assert patterns_for(bytes.fromhex(Path(name).stem)).size


@pytest.fixture
def keep_former() -> Callable[[Path, Int8], list[str]]:
    """The exporter's function, from beside the package: it lives with the training scripts."""
    script = Path(__file__).parents[3] / "engines" / "train" / "former.py"
    spec = importlib.util.spec_from_file_location("former", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Path, Int8], list[str]] = module.keep_former
    return function


def export(folder: Path, patterns: Int8, keep: Callable[[Path, Int8], list[str]]) -> None:
    """Replace the model in `folder` as the exporter does."""
    lines = keep(folder, patterns)
    text = (folder / "card.toml").read_text("utf-8").split("\n[former]")[0]
    before = catalogue.read_card(folder).files["patterns.npy"]
    np.save(folder / "patterns.npy", patterns)
    after = hashlib.sha256((folder / "patterns.npy").read_bytes()).hexdigest()
    text = text.replace(before, after).rstrip("\n") + "\n" + "\n".join(lines) + "\n"
    (folder / "card.toml").write_text(text, "utf-8")
    patterns_for.cache_clear()


def test_three_exports_later_the_first_model_s_patterns_are_still_found(
    tmp_path: Path, keep_former: Callable[[Path, Int8], list[str]]
) -> None:
    install(tmp_path, OLD)
    models = [catalogue.load_patterns(catalogue.read_card(tmp_path))]
    for turn in (1, 2, 3):
        models.append(np.roll(models[0], turn, axis=1))
        export(tmp_path, models[-1], keep_former)
    export(tmp_path, models[-1], keep_former)  # the same again adds nothing
    for patterns in (OLD, *models):
        np.testing.assert_array_equal(patterns_for(patterns_id(patterns), tmp_path), patterns)
    assert len(catalogue.read_card(tmp_path).former) == 4


def test_a_model_that_comes_back_is_not_its_own_predecessor(
    tmp_path: Path, keep_former: Callable[[Path, Int8], list[str]]
) -> None:
    install(tmp_path, OLD)
    first = catalogue.load_patterns(catalogue.read_card(tmp_path))
    second = np.roll(first, 1, axis=1)
    for patterns in (second, first):
        export(tmp_path, patterns, keep_former)
    former = catalogue.read_card(tmp_path).former
    assert set(former) == {f"patterns/{patterns_id(each).hex()}.npy" for each in (OLD, second)}


def test_no_card_is_written_over_a_damaged_predecessor(
    tmp_path: Path, keep_former: Callable[[Path, Int8], list[str]]
) -> None:
    name = f"patterns/{install(tmp_path, OLD).hex()}.npy"
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="nothing written"):
        keep_former(tmp_path, OLD)
