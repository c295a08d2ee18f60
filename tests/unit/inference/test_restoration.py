"""Whatever chose the mark, the original comes back bit for bit: from any backend, and from none."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from cpu_lanes import Device, engine_on
from inference_processes import Altered, serving

from dicom_node.config import WatermarkConfig
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.remote import RemoteEngine
from dicom_node.inference.resilient import ResilientEngine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker, restore
from dicom_node.verify.check import check_instance

DEMO = Path(__file__).parents[3] / "demo"
WHEN = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
SOURCES = (DEMO / "mr_brain" / "brain_012.dcm", DEMO / "us_doppler" / "doppler.dcm")


def coarse(values: Float32) -> Float32:
    """Round as a backend in half precision does, and worse: to 8 bits of mantissa."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)


class Wild(OnnxEngine):
    """Chooses something else altogether: any choice must come off again."""

    def strengths(self, frames: Float32) -> Float32:
        return (
            np.random.default_rng(4)
            .integers(0, 8, super().strengths(frames).shape)
            .astype(np.float32)
        )


def dying() -> RobustEngine:
    """Return an engine whose GPU vanishes while the first frame is being marked."""
    left = [2]

    def fault(frames: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise DeviceLost("unplugged")

    reference = OnnxEngine(read_card())
    return ResilientEngine(engine_on(Device(reference, fault)), reference)


ENGINES = {
    "onnx": lambda: OnnxEngine(read_card()),
    "coarse": lambda: engine_on(Device(OnnxEngine(read_card()), rounding=coarse)),
    "wild": lambda: Wild(read_card()),
    "lost in mid-run": dying,
}


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.open(tmp_path_factory.mktemp("k") / "keys", owner="TEST", create=True)


@pytest.fixture(scope="module", params=[path.stem for path in SOURCES])
def source(request: pytest.FixtureRequest) -> Path:
    [path] = [path for path in SOURCES if path.stem == request.param]
    return path


@pytest.mark.parametrize("marker", ENGINES)
def test_what_one_backend_marked_another_reads_and_takes_off_exactly(
    marker: str, source: Path, ring: KeyRing, tmp_path: Path
) -> None:
    out = tmp_path / "marked.dcm"
    outcome = Marker(WatermarkConfig(), ring, ENGINES[marker]()).mark(source, out, marked_at=WHEN)
    assert outcome.action == "marked", outcome.reason
    original = pydicom.dcmread(source).pixel_array
    assert not np.array_equal(pydicom.dcmread(out).pixel_array, original)
    for other in ("onnx", "coarse"):
        assert check_instance(out, ring, ENGINES[other]()).verdict == "authentic"
    restored = restore(out, tmp_path / "back.dcm", ring)
    assert restored.exact, restored.reason
    assert np.array_equal(pydicom.dcmread(tmp_path / "back.dcm").pixel_array, original)


class WildHalf(Altered):
    """An inference process that does its check well and then chooses nonsense in range."""

    asked = 0

    def strengths(self, frames: Float32) -> Float32:
        self.asked += 1
        if self.asked == 1:
            return super().strengths(frames)
        return np.random.default_rng(self.asked).integers(0, 8, (len(frames), 16, 16)).astype("f4")


@pytest.mark.parametrize("process", [Altered, WildHalf], ids=["half precision", "wild"])
def test_what_an_inference_process_chose_comes_off_without_it(
    process: type[Altered], source: Path, ring: KeyRing, tmp_path: Path
) -> None:
    card, own = read_card(), OnnxEngine(read_card())
    out = tmp_path / "marked.dcm"
    with serving(tmp_path / "0", process()):
        engine = RemoteEngine([tmp_path / "0"], own, card)
        engine.settle()
        assert engine.name == "altered"
        outcome = Marker(WatermarkConfig(), ring, engine).mark(source, out, marked_at=WHEN)
        assert (engine.name, engine.losses) == ("altered", 0)
        engine.close()
    assert outcome.action == "marked", outcome.reason
    assert check_instance(out, ring, own).verdict == "authentic"
    restored = restore(out, tmp_path / "back.dcm", ring)
    assert restored.exact, restored.reason
    original = pydicom.dcmread(source).pixel_array
    assert np.array_equal(pydicom.dcmread(tmp_path / "back.dcm").pixel_array, original)


WITHOUT = """
import json, sys
for name in ("onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda"):
    sys.modules[name] = None  # importing it raises ImportError
from pathlib import Path
from dicom_node.keys import KeyRing
from dicom_node.marking import restore
marked, back, keys = map(Path, sys.argv[1:])
outcome = restore(marked, back, KeyRing.open(keys))
print(json.dumps([outcome.exact, outcome.reason]))
"""


def test_on_a_machine_without_any_backend_the_original_still_comes_back(
    source: Path, tmp_path: Path
) -> None:
    keys = KeyRing.open(tmp_path / "keys", owner="TEST", create=True)
    marked, back = tmp_path / "marked.dcm", tmp_path / "back.dcm"
    Marker(WatermarkConfig(), keys, ENGINES["coarse"]()).mark(source, marked, marked_at=WHEN)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, marked, back, tmp_path / "keys"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, ""]
    assert np.array_equal(pydicom.dcmread(back).pixel_array, pydicom.dcmread(source).pixel_array)
