"""Which backend is taken: the best that opens and passes, and never one that was not checked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from cpu_lanes import Device, engine_on, real_frames
from structlog.testing import capture_logs

from dicom_node.errors import EngineError
from dicom_node.inference import opening
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import Card, read_card
from dicom_node.inference.onnx import OnnxEngine

Opener = Callable[[Card], RobustEngine]


def named(name: str, rounding: Callable[[Float32], Float32] = lambda values: values) -> Opener:
    """Return what opens a backend of that name, which rounds its answers in that way."""

    def open_it(card: Card) -> RobustEngine:
        engine = engine_on(Device(OnnxEngine(card), rounding=rounding))
        engine.name = name
        return engine

    return open_it


def missing(card: Card) -> RobustEngine:
    raise EngineError("no such GPU")


GOOD = {name: named(name) for name in ("tensorrt fp16", "tensorrt fp32", "cuda")}
WRONG = {name: named(name, lambda values: values * np.float32(1.1)) for name in GOOD}
MISSING = dict.fromkeys(GOOD, missing)


@pytest.mark.parametrize(
    ("here", "taken"),
    [
        (GOOD, "tensorrt fp16"),
        (GOOD | {"tensorrt fp16": WRONG["tensorrt fp16"]}, "tensorrt fp32"),
        (GOOD | {"tensorrt fp16": missing, "tensorrt fp32": missing}, "cuda"),
        (WRONG, "onnx"),
        (MISSING, "onnx"),
        ({}, "onnx"),
    ],
    ids=["all", "half too coarse", "no TensorRT", "all out of tolerance", "no GPU", "none"],
)
def test_auto_takes_the_best_that_passes_its_check(
    here: dict[str, Opener], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_accelerated", lambda choice: list(here.items()))
    with capture_logs() as said:
        engine = opening.open_engine("auto")
    assert engine.name == taken
    reference = OnnxEngine(read_card())
    np.testing.assert_allclose(
        engine.decode(real_frames()), reference.decode(real_frames()), atol=1e-4
    )
    assert [line["event"] for line in said] == (["backend_chosen"] if here else [])


def test_a_backend_that_was_asked_for_is_not_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "_accelerated", lambda choice: [("tensorrt fp16", missing)])
    with pytest.raises(EngineError, match='no such GPU; set engine = "onnx" or "auto"'):
        opening.open_engine("tensorrt")


def test_check_refuses_what_is_out_of_tolerance_and_passes_over_what_is_not_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = [("tensorrt fp16", WRONG["cuda"]), ("tensorrt fp32", GOOD["cuda"]), ("cuda", missing)]
    monkeypatch.setattr(opening, "_accelerated", lambda choice: here)
    rows = {str(row["name"]): row for row in opening.check_engines()}
    assert rows["onnx"]["ok"] is True
    assert rows["tensorrt fp16"]["ok"] is False
    assert rows["tensorrt fp32"]["ok"] is True
    assert "ok" not in rows["cuda"]
    assert "no such GPU" in str(rows["cuda"]["detail"])


def test_the_order_is_tensorrt_in_half_then_in_float_then_cuda() -> None:
    names = [name for choice in ("tensorrt", "cuda") for name, _ in opening._accelerated(choice)]
    assert names == ["tensorrt fp16", "tensorrt fp32", "cuda"]


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="pycuda is here")
def test_a_plain_machine_loads_nothing_of_the_gpu_backends() -> None:
    script = (
        "import sys; from dicom_node.inference import open_engine; open_engine('auto');"
        "print([m for m in sys.modules if 'tensorrt' in m or 'pycuda' in m"
        " or m.endswith(('inference.gpu', 'onnx_cuda'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
