"""E1's loop, synthesis and sum as graphs: the sum is the CPU's to the last bit, the choice nearly.

Run in ONNX Runtime, compiled in TensorRT for RTX; no GPU has run them. Whoever has one:
``DICOM_NODE_PROVIDER=CUDAExecutionProvider pytest tests/unit/inference/test_device.py``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import EngineError
from dicom_node.inference import catalogue, device, tensorrt_compiler
from dicom_node.inference.base import Loop
from dicom_node.inference.device import Covers, DeviceMarking, Residuals
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.planes import bounds_of, polarity, robust_part
from dicom_node.watermark import synthesis
from dicom_node.watermark.choosing import SECOND_SOFTNESS, Chooser, midtones
from dicom_node.watermark.covers import (
    LOCAL_DB,
    LOCAL_GREY,
    LOCAL_HALVES_DB,
    Cover,
    Look,
    budget_rms,
    resample,
)
from dicom_node.watermark.synthesis import RobustRecord

ROOT = Path(__file__).parents[3]
GREY = [
    ROOT / "demo" / name
    for name in ("mr_brain/brain_012.dcm", "mr_brain/brain_015.dcm", "cr_hand/hand.dcm")
]
PROVIDER = os.environ.get("DICOM_NODE_PROVIDER", "CPUExecutionProvider")
ENGINE = OnnxEngine(catalogue.read_card())
NO_PADDING = np.array([[1, 0]], np.int32)


@pytest.fixture(scope="module", params=[None, PROVIDER], ids=["plain", "named"])
def marking(request: pytest.FixtureRequest) -> DeviceMarking:
    return DeviceMarking(ENGINE, provider=request.param)


def residuals(records: list[RobustRecord]) -> Residuals:
    """Return what records keep, one row each."""
    return Residuals(
        np.stack([r.amplitudes for r in records]).astype(np.int32),
        np.stack([r.strengths for r in records]).astype(np.int32),
        np.array([r.carrier_scale for r in records], np.int32),
        np.array([r.scale for r in records], np.int32),
    )


def record(rng: np.random.Generator, scale: tuple[int, int]) -> RobustRecord:
    """Return the record of some mark, of the kind that E1 makes."""
    amplitudes = rng.integers(-31, 32, 160).astype(np.int8)
    strengths = rng.integers(0, 8, (16, 16)).astype(np.uint8)
    carrier = synthesis.superpose(amplitudes.astype(np.int32), ENGINE.patterns)
    return RobustRecord(ENGINE.model_id, amplitudes, strengths, synthesis.carrier_scale(carrier),
                        scale, np.empty(0, np.int64))  # fmt: skip


@settings(max_examples=40)
@given(data=st.data())
def test_the_sum_is_the_cpus_to_the_last_bit(marking: DeviceMarking, data: st.DataObject) -> None:
    draw = data.draw
    rows, columns = draw(st.integers(48, 200)), draw(st.integers(48, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits, signed = draw(st.sampled_from([8, 12, 16])), draw(st.booleans())
    low = -(1 << bits >> 1) if signed else 0
    high = low + (1 << bits) - 1
    made, hosts, wanted, padding = [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        made.append(record(rng, synthesis.fixed_point(10 ** rng.uniform(-5.4, -1.5))))
        host = rng.normal(rng.uniform(low, high), (high - low) / 8, (rows, columns))
        host = np.clip(np.rint(host), low, high).astype(np.int32)
        host[: rows // 3, : columns // 3] = rng.choice([low, high, low + 1, high - 1])
        pads = (int(host[0, 0]), int(host[0, 0]) + int(rng.integers(0, 9)))
        hosts.append(host)
        padding.append(pads if rng.random() < 0.5 else (1, 0))
        delta = synthesis.delta_of(made[-1], ENGINE.patterns, rows, columns)
        known = padding[-1] if padding[-1][0] <= padding[-1][1] else None
        wanted.append(synthesis.apply(host, delta, low, high, known))
    count = len(made)
    marked, exceptions = marking.put_on(
        np.stack(hosts), residuals(made), np.full(count, low, np.int32),
        np.full(count, high, np.int32), np.array(padding, np.int32),
    )  # fmt: skip
    for at, (expected, flags) in enumerate(wanted):
        np.testing.assert_array_equal(marked[at], expected)
        np.testing.assert_array_equal(exceptions[at], flags)
        assert exceptions[at].dtype == flags.dtype == np.bool_


@pytest.mark.parametrize("amplitude", [31, -31])
def test_the_largest_carrier_there_can_be_is_added_up_exactly(
    marking: DeviceMarking, amplitude: int
) -> None:
    """Every bit pulls one way: the sums, and the products with the scale, are at their largest."""
    signs = np.sign(ENGINE.patterns[:, 5000]).astype(np.int8)
    amplitudes = np.where(signs == 0, 1, signs) * np.int8(amplitude)
    carrier = synthesis.superpose(amplitudes.astype(np.int32), ENGINE.patterns)
    for scale in ((4095, 0), (2048, 19), (4095, 19), (1, 0)):
        one = RobustRecord(ENGINE.model_id, amplitudes, np.full((16, 16), 7, np.uint8), scale,
                           (4095, 29), np.empty(0, np.int64))  # fmt: skip
        host = np.full((1, 96, 64), 30000, np.int32)
        marked, _ = marking.put_on(host, residuals([one]), np.array([-65536], np.int32),
                                   np.array([65535], np.int32), NO_PADDING)  # fmt: skip
        delta = synthesis.delta_of(one, ENGINE.patterns, 96, 64)
        np.testing.assert_array_equal(marked[0] - host[0], delta)
    assert np.abs(carrier).max() > 60_000


@pytest.mark.parametrize(
    ("carrier_scale", "scale"),
    [((4000, 20), (3000, 20)), ((0, 3), (3000, 20)), ((4000, 9), (1, 30))],
)
def test_a_scale_that_does_not_fit_is_refused_and_not_computed_wrongly(
    marking: DeviceMarking, carrier_scale: tuple[int, int], scale: tuple[int, int]
) -> None:
    one = RobustRecord(ENGINE.model_id, np.ones(160, np.int8), np.ones((16, 16), np.uint8),
                       carrier_scale, scale, np.empty(0, np.int64))  # fmt: skip
    host, zero = np.zeros((1, 64, 64), np.int32), np.zeros(1, np.int32)
    with pytest.raises(EngineError, match="out of the device's range"):
        marking.put_on(host, residuals([one]), zero, zero, NO_PADDING)


class Real:
    """A real frame on its way to W1, as the node's own code sees it, and as the device does.

    `largest` and `second` are those of `Chooser`: a bound on the change, another attempt.
    """

    def __init__(
        self, path: Path, blurred: bool, largest: int | None = None, second: bool = False
    ) -> None:
        with closing(open_instance(path, max_pixels=1 << 28)) as instance:
            frame, shown = instance.frame(0), display_of(instance)
            self.display = shown.image(frame, 0)
            self.host = np.ascontiguousarray(robust_part(frame, instance))
            self.bounds = bounds_of(instance)
            step = shown.step(0) * polarity(self.host, self.display)
        look = Look(ENGINE.side, lambda seen: ENGINE.decode(seen[:, None]))
        self.chooser = Chooser(ENGINE, look=look, second=second)
        small = resample(self.display, ENGINE.side)
        self.word = np.sign(np.random.default_rng(7).normal(size=160)).astype(np.float32)
        self.cover: Cover = self.chooser.covers(
            self.host, self.display, small, step, self.bounds.low, self.bounds.high, self.word
        )[0]
        if not blurred:
            self.cover = self.chooser.as_it_is(self.cover)
        self.psnr_db = 43.0
        self.largest = largest
        self.softness = SECOND_SOFTNESS if second and not blurred else None
        self.crest, most = self.chooser.limits(bound=largest is not None)
        grid = ENGINE.strengths(small[None, None])[0].clip(0, 7).astype(np.uint8)
        self.strengths = np.minimum(midtones(grid, small), most).astype(np.int32)

    def covers(self) -> Covers:
        cover = self.cover
        whole = 10 ** (-self.psnr_db / 20)
        local = LOCAL_GREY * 2 ** ((LOCAL_DB - self.psnr_db) / LOCAL_HALVES_DB) / 256
        return Covers(
            self.display[None], self.host[None], cover.small[None], self.word[None],
            self.strengths[None], np.array([self.crest], np.float32),
            np.array([np.sign(cover.step)], np.float32), np.array([cover.low], np.int32),
            np.array([cover.high], np.int32), np.array([whole], np.float32),
            np.array([local], np.float32), cover.blur,
        )  # fmt: skip


BOUND = 4
REAL = {
    f"{path.stem} {'blurred' if blurred else 'as it is'}": (path, blurred)
    for path in GREY for blurred in (True, False)
} | {
    "bound": (GREY[0], True, BOUND),
    "again": (GREY[2], False, None, True),
    "bound, again": (GREY[1], False, BOUND, True),
}  # fmt: skip


@pytest.fixture(params=REAL.values(), ids=list(REAL))
def real(request: pytest.FixtureRequest) -> Real:
    return Real(*request.param)


def test_it_chooses_what_the_node_chooses(marking: DeviceMarking, real: Real) -> None:
    covers = real.covers()
    chosen = marking.choose(covers, softness=real.softness)
    expected = real.chooser.choose(real.cover, real.psnr_db, real.largest)
    assert expected is not None
    np.testing.assert_array_equal(covers.strengths[0], expected.strengths)
    off = np.abs(chosen.amplitudes[0] - expected.amplitudes)
    assert off.max() <= 1
    assert np.mean(off > 0) <= 0.03
    gain, shift = chosen.carrier_scale[0]
    theirs = expected.carrier_scale[0] / 2 ** expected.carrier_scale[1]
    assert gain / 2**shift == pytest.approx(theirs, rel=5e-3)
    assert chosen.size[0] == pytest.approx(expected.size, rel=5e-3)
    assert chosen.share[0] == pytest.approx(expected.share)
    assert chosen.tried[0] == pytest.approx(budget_rms(real.psnr_db, expected.share), rel=1e-4)
    reads = (chosen.after - chosen.before)[0] / chosen.tried[0]
    rms = np.sqrt(np.mean(expected.gain**2))
    assert np.abs(reads - expected.gain).max() < 0.05 * rms
    assert np.abs(chosen.before[0] - real.cover.soft).max() < 1e-3 * np.abs(real.cover.soft).max()


def test_a_mark_made_on_the_device_is_read_and_comes_off_without_it(
    marking: DeviceMarking, real: Real
) -> None:
    covers = real.covers()
    chosen = marking.choose(covers, softness=real.softness)
    rms = float(chosen.tried[0])
    scale = synthesis.fixed_point(rms * 256 * abs(real.cover.step) / float(chosen.size[0]))
    bounds = real.bounds
    padding = np.array([bounds.padding or (1, 0)], np.int32)
    marked, exceptions = marking.put_on(
        covers.host,
        Residuals(chosen.amplitudes, covers.strengths, chosen.carrier_scale,
                  np.array([scale], np.int32)),
        np.array([bounds.low], np.int32), np.array([bounds.high], np.int32), padding,
    )  # fmt: skip
    gain, shift = map(int, chosen.carrier_scale[0])
    kept = RobustRecord(
        ENGINE.model_id, chosen.amplitudes[0].astype(np.int8), covers.strengths[0].astype(np.uint8),
        (gain, shift), scale, exceptions[0],
    )  # fmt: skip
    read = RobustRecord.from_bytes(kept.to_bytes())
    rows, columns = real.host.shape
    delta = synthesis.delta_of(read, ENGINE.patterns, rows, columns)
    assert not np.array_equal(marked[0], real.host)
    restored = synthesis.remove(marked[0], delta, bounds.low, bounds.high, bounds.padding,
                                read.exceptions)  # fmt: skip
    np.testing.assert_array_equal(restored, real.host)
    change = (marked[0] - real.host) / (256 * real.cover.step)
    shown = np.clip(real.display + change, 0, 1).astype(np.float32)
    soft = ENGINE.decode(resample(shown, ENGINE.side)[None, None])[0]
    assert np.mean(np.sign(soft) == real.word) >= 0.98


def test_frames_of_one_size_are_marked_together_as_they_are_alone(marking: DeviceMarking) -> None:
    one = Real(GREY[0], True).covers()
    flipped = one._replace(
        display=one.display[:, ::-1].copy(), host=one.host[:, ::-1].copy(),
        small=one.small[:, ::-1].copy(), words=-one.words,
        strengths=one.strengths[:, ::-1].copy(), crest=np.float32(0.5) * one.crest,
    )  # fmt: skip
    both = Covers(
        *(np.concatenate([a, b]) for a, b in zip(one[:-1], flipped[:-1], strict=True)), one.blur
    )
    together = marking.choose(both)
    for at, each in enumerate((one, flipped)):
        alone = marking.choose(each)
        [gain, gain_alone], [shift, shift_alone] = np.stack(
            [together.carrier_scale[at], alone.carrier_scale[0]], axis=1
        )
        assert gain / 2**shift == pytest.approx(gain_alone / 2**shift_alone, rel=1e-2)
        assert np.abs(together.amplitudes[at] - alone.amplitudes[0]).max() <= 1
        assert together.size[at] == pytest.approx(alone.size[0], rel=1e-2)


@pytest.fixture(scope="module")
def trt() -> Any:
    try:
        return tensorrt_compiler.runtime()
    except EngineError as error:
        if os.environ.get("REQUIRE_TENSORRT"):
            pytest.fail(str(error))
        pytest.skip(f"TENSORRT MISSING, no plan was compiled: {error}")


@pytest.mark.parametrize("capability", ["SM86", "SM89", "SM120"])
def test_both_graphs_compile_for_gpus_that_are_elsewhere(trt: Any, capability: str) -> None:
    plans = device.compile_graphs(capability)
    assert {name: {t.name for t in plan.outputs} for name, plan in plans.items()} == {
        device.CHOOSE: {"amplitudes", "carrier_gain", "carrier_divisor", "size", "share", "tried",
                        "picture"},
        device.PUT_ON: {"marked", "doubtful", "stayed"},
    }  # fmt: skip
    for name, plan in plans.items():
        assert len(plan.plan) > 10_000
        inputs = {tensor.name: tensor for tensor in plan.inputs}
        assert inputs["host"].shape == (-1, -1, -1)
        assert inputs["host"].profile == ((1, 48, 48), (8, 512, 512), (16, 1024, 1024))
        assert inputs["carrier_rows"].profile == ((3, 48), (3, 512), (3, 1024))
        assert {t.name: t.profile for t in plan.inputs if t.profile} == device.profiles_of(name)
    dtypes = {t.name: t.dtype for t in plans[device.PUT_ON].outputs}
    assert dtypes == {"marked": "INT32", "doubtful": "BOOL", "stayed": "BOOL"}


def test_an_input_whose_size_nobody_names_is_refused(trt: Any) -> None:
    path = catalogue.folder() / "device" / device.PUT_ON
    named = device.profiles_of(device.PUT_ON)
    del named["host"]
    with pytest.raises(EngineError, match="nobody says how large input host may be"):
        tensorrt_compiler.compile_plan(path, "fp32", device.BATCHES, "SM89", profiles=named)


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    shutil.copytree(catalogue.folder() / "device", tmp_path / "device")
    return tmp_path


@pytest.mark.parametrize("file", [device.CHOOSE, device.PUT_ON])
def test_a_graph_that_is_not_the_cards_is_refused(altered: Path, file: str) -> None:
    blob = bytearray((altered / "device" / file).read_bytes())
    blob[len(blob) // 2] ^= 1
    (altered / "device" / file).write_bytes(bytes(blob))
    with pytest.raises(EngineError, match=f"{file}.*altered or damaged"):
        DeviceMarking(ENGINE, altered)
    with pytest.raises(EngineError, match=f"{file}.*altered or damaged"):
        device._checked(file, altered)
    (altered / "device" / "card.toml").unlink()
    with pytest.raises(EngineError, match="unreadable or incomplete"):
        DeviceMarking(ENGINE, altered)


def test_a_provider_that_is_not_here_is_refused_and_not_replaced_by_the_cpu() -> None:
    with pytest.raises(EngineError, match="this ONNX Runtime has no TensorrtExecutionProvider"):
        DeviceMarking(ENGINE, provider="TensorrtExecutionProvider")


def test_a_model_of_another_shape_or_with_more_turns_is_refused() -> None:
    class Longer(OnnxEngine):
        def __init__(self) -> None:
            super().__init__(catalogue.read_card())
            self.loop = Loop((2.0, 1.0), (3.5, 3.5))

    class Smaller(Longer):
        def __init__(self) -> None:
            super().__init__()
            self.side = 96

    with pytest.raises(EngineError, match="one turn, not 2"):
        DeviceMarking(Longer())
    with pytest.raises(EngineError, match="128 x 128"):
        DeviceMarking(Smaller())


def test_places_are_those_of_the_synthesis() -> None:
    for source in (16, 128):
        for target in (48, 64, 100, 128, 255, 512, 1000):
            np.testing.assert_array_equal(
                device.places(source, target), synthesis._places(source, target)
            )


def test_the_graphs_that_ship_are_those_the_script_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ROOT / "engines" / "train" / "export_device.py"
    spec = importlib.util.spec_from_file_location("export_device", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["export_device.py", "--out", str(tmp_path)])
    module.main()
    for file in (device.CHOOSE, device.PUT_ON, "card.toml"):
        assert (tmp_path / file).read_bytes() == (ROOT / "engines/device" / file).read_bytes(), file
