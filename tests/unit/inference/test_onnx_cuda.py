"""ONNX Runtime on a GPU: refused where it would be the CPU in disguise; its errors become ours.

No GPU has run it yet. The class is run here on the CPU provider of the same ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from cpu_lanes import real_frames

from dicom_node.errors import EngineError
from dicom_node.inference import open_engine
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.onnx_cuda import CUDA, OnnxCudaEngine, _ours


def test_it_answers_as_the_reference_does() -> None:
    engine, reference = OnnxCudaEngine(read_card(), "CPUExecutionProvider"), OnnxEngine(read_card())
    np.testing.assert_allclose(
        engine.decode(real_frames()), reference.decode(real_frames()), atol=1e-4
    )
    assert engine.model_id == reference.model_id


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_an_onnx_runtime_without_cuda_is_refused_and_says_what_to_install() -> None:
    with pytest.raises(EngineError, match="install onnxruntime-gpu"):
        open_engine("cuda")


def test_a_misshapen_question_is_no_fault_of_the_device() -> None:
    engine = OnnxCudaEngine(read_card(), "CPUExecutionProvider")
    with pytest.raises(EngineError, match="INVALID_ARGUMENT") as refused:
        engine.whiten(np.zeros((1, 1, 64, 64), np.float32))
    assert type(refused.value) is EngineError


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ("Failed to allocate memory for requested buffer of size 4194304", OutOfDeviceMemory),
        ("BFCArena::AllocateRawInternal Available memory of 0 is smaller", OutOfDeviceMemory),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfDeviceMemory),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", DeviceLost),
        ("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR", DeviceLost),
    ],
)
def test_what_it_says_decides_what_is_done(said: str, ours: type[EngineError]) -> None:
    error = _ours("failed", RuntimeError(said))
    assert type(error) is ours
    assert said in str(error)
