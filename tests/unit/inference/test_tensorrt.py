"""Every network's plan compiles on a machine without a GPU, and is what the engine will ask for.

Skipped, loudly, where TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs
tensorrt-rtx-cu13-bindings. Nothing here runs a plan.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_lanes import real_frames

from dicom_node.cli.main import main
from dicom_node.errors import EngineError
from dicom_node.inference import catalogue, tensorrt, tensorrt_compiler
from dicom_node.inference.comparison import MOST_SOFT
from dicom_node.inference.gpu import Gpu, failure, translated
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.plans import ANY_GPU, read_plan
from dicom_node.inference.tensorrt_compiler import PRECISIONS, Batches, Messages, Precision

CAPABILITIES = ("SM75", "SM86", "SM89", "SM120")
FRAME = (-1, 1, 128, 128)
PROFILE = tuple((frames, *FRAME[1:]) for frames in Batches())


@pytest.fixture(scope="module")
def trt() -> Any:
    try:
        return tensorrt_compiler.runtime()
    except EngineError as error:
        message = f"TENSORRT MISSING, no plan was compiled: {error}"
        if os.environ.get("REQUIRE_TENSORRT"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """Return a copy of the networks that a test may damage."""
    source = catalogue.folder()
    for name in ("card.toml", *catalogue.read_card(source).files):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


def vouch(folder: Path, name: str) -> catalogue.Card:
    """Write the card anew so that it vouches for a changed file."""
    old = catalogue.read_card(folder).files[name]
    new = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = (folder / "card.toml").read_text("utf-8").replace(old, new)
    (folder / "card.toml").write_text(text, "utf-8")
    return catalogue.read_card(folder)


def compiled(
    card: catalogue.Card, file: str, precision: Precision, capability: str = "SM89"
) -> tensorrt_compiler.Compiled:
    key = tensorrt.plan_key(card, file, precision, ANY_GPU, capability)
    return tensorrt.compile_network(card, key)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_whitener_compiles_with_its_correlators(trt: Any, precision: Precision) -> None:
    found = compiled(catalogue.read_card(), tensorrt.WHITENER, precision)
    assert len(found.plan) > 10_000
    assert {t.name: (t.shape, t.profile) for t in found.inputs} == {
        "frame": (FRAME, PROFILE),
        "patterns": ((160, 16384), ()),
    }
    assert {t.name: t.shape for t in found.outputs} == {
        "whitened": (-1, 16384), "soft": (-1, 160),
    }  # fmt: skip
    dtypes = {t.name: t.dtype for t in (*found.inputs, *found.outputs)}
    assert dtypes.pop("patterns") == ("HALF" if precision == "fp16" else "FLOAT")
    assert set(dtypes.values()) == {"FLOAT"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_strength_network_compiles(trt: Any, precision: Precision) -> None:
    found = compiled(catalogue.read_card(), tensorrt.STRENGTH, precision)
    assert len(found.plan) > 10_000
    assert [(t.name, t.shape, t.profile) for t in found.inputs] == [("frame", FRAME, PROFILE)]
    assert [(t.name, t.shape, t.dtype) for t in found.outputs] == [
        ("strengths", (-1, 16, 16), "FLOAT")
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("file", "inputs", "output"),
    [
        ("r2.onnx", {"picture": (-1, 1, 256, 256)}, ("whitened", (-1, 16384))),
        ("r2_small.onnx", {"picture": (-1, 1, 128, 128)}, ("whitened", (-1, 4096))),
        ("f1.onnx", {"frame": FRAME}, ("code", (-1, 8, 16, 16))),
        ("f1_check.onnx", {"frame": FRAME, "code": (-1, 8, 16, 16)}, ("changed", (-1, 16, 16))),
    ],
)
def test_the_networks_that_the_node_runs_on_the_cpu_compile_too(
    trt: Any, file: str, inputs: dict[str, tuple[int, ...]], output: tuple[str, tuple[int, ...]],
    precision: Precision,
) -> None:  # fmt: skip
    found = tensorrt_compiler.compile_plan(
        catalogue.folder() / file, precision, Batches(), "SM89"
    )
    assert len(found.plan) > 10_000
    assert {t.name: t.shape for t in found.inputs} == inputs
    for tensor in found.inputs:
        assert tensor.profile == tuple((count, *tensor.shape[1:]) for count in Batches())
    assert [(t.name, t.shape) for t in found.outputs] == [output]


def test_tensorrt_is_taken_before_tensorrt_for_rtx(tmp_path: Path) -> None:
    script = (
        "from dicom_node.errors import EngineError\n"
        "from dicom_node.inference import tensorrt_compiler as c\n"
        "try: print(c.runtime_name())\n"
        "except EngineError as error: print(error)\n"
    )

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        )  # fmt: skip
        return done.stdout.strip()

    for number, name in enumerate(reversed(tensorrt_compiler.RUNTIMES)):
        (tmp_path / f"{name}.py").write_text(f"__version__ = '1.{number}'\n")
        assert said() == f"{name.removesuffix('_bindings')} 1.{number}"
    assert said() == "tensorrt 1.2"
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: not found')\n")
    assert said() == "tensorrt is installed but does not load: libnvinfer.so.10: not found"


def test_half_precision_is_that_of_the_convolutions_and_of_nothing_else(trt: Any) -> None:
    for file in tensorrt.NETWORKS:
        log = tensorrt_compiler.logger(Messages())
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        assert parser.parse((catalogue.folder() / file).read_bytes())
        count = network.num_layers
        kept = tensorrt_compiler._halve_convolutions(trt, network)
        halved = set()
        for layer in (network.get_layer(i) for i in range(count)):
            is_half = layer.get_output(0).dtype == trt.DataType.HALF
            assert is_half == (layer.type == trt.LayerType.CONVOLUTION), layer.name
            halved.add(is_half)
        assert halved == {True, False}
        del kept


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_plans_for_a_gpu_that_is_elsewhere_are_built_here(
    trt: Any, capability: str, tmp_path: Path
) -> None:
    if not hasattr(trt, "ComputeCapability"):
        pytest.skip("data-centre TensorRT compiles for the GPU that is here")
    card = catalogue.read_card()
    rows = tensorrt.build_plans(card, [capability], tmp_path)
    assert {(row["network"], row["precision"]) for row in rows} == {
        (file, precision) for file in tensorrt.NETWORKS for precision in PRECISIONS
    }
    for row in rows:
        key = tensorrt.plan_key(card, row["network"], row["precision"], ANY_GPU, capability)
        assert len(read_plan(Path(row["file"]), key).plan) == row["bytes"]


def test_a_capability_this_tensorrt_does_not_know_is_refused_with_those_it_does(trt: Any) -> None:
    with pytest.raises(EngineError, match=r"compiles for SM75.*, not for SM61"):
        compiled(catalogue.read_card(), tensorrt.STRENGTH, "fp32", "SM61")


@pytest.mark.parametrize("file", tensorrt.NETWORKS)
def test_no_plan_is_built_from_a_network_that_is_not_the_cards(
    trt: Any, altered: Path, file: str
) -> None:
    blob = bytearray((altered / file).read_bytes())
    blob[len(blob) // 2] ^= 1
    (altered / file).write_bytes(bytes(blob))
    with pytest.raises(EngineError, match=f"{file}.*altered or damaged"):
        compiled(catalogue.read_card(altered), file, "fp32")


@pytest.mark.parametrize("file", tensorrt.NETWORKS)
def test_no_plan_is_built_from_a_network_of_another_shape(
    trt: Any, altered: Path, file: str
) -> None:
    [other] = set(tensorrt.NETWORKS) - {file}
    shutil.copy(altered / other, altered / file)
    with pytest.raises(EngineError, match=r"the card says|cannot be correlated"):
        compiled(vouch(altered, file), file, "fp32")


def test_no_plan_is_built_from_a_network_without_a_batch_axis(trt: Any, altered: Path) -> None:
    path = altered / tensorrt.STRENGTH
    named, one = b"\x12\x05batch", b"\x08\x81\x80\x80\x80\x80\x00"  # dim_param, dim_value 1
    blob = path.read_bytes()
    assert named in blob
    path.write_bytes(blob.replace(named, one))
    with pytest.raises(EngineError, match="no input has a batch axis"):
        compiled(vouch(altered, tensorrt.STRENGTH), tensorrt.STRENGTH, "fp32")


@pytest.mark.parametrize("blob", [b"", b"not a network", b"\x08\x08\x3a\x00"])
def test_what_is_no_network_at_all_is_refused(trt: Any, altered: Path, blob: bytes) -> None:
    (altered / tensorrt.STRENGTH).write_bytes(blob)
    with pytest.raises(EngineError, match=r"strength\.onnx: .*(cannot read|no network)"):
        compiled(vouch(altered, tensorrt.STRENGTH), tensorrt.STRENGTH, "fp32")


def test_without_tensorrt_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_compiler, "RUNTIMES", ("no_such_tensorrt",))
    tensorrt_compiler.runtime.cache_clear()
    try:
        with pytest.raises(EngineError, match=r"dicom-node\[gpu\]"):
            tensorrt.build_plans(catalogue.read_card(), ["SM89"])
    finally:
        tensorrt_compiler.runtime.cache_clear()


def test_the_command_builds_plans_and_refuses_what_it_cannot(
    trt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["engines", "build", "--out", str(tmp_path)]
    assert main([*command, "--for", "SM89"]) == 0
    assert len(list(tmp_path.glob("*.plan"))) == 4
    assert main([*command, "--for", "SM61"]) == 3
    assert "SM61" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main([*command, "--for", "8.9"])
    assert usage.value.code == 2


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="pycuda is here")
def test_without_a_gpu_the_command_says_how_to_name_one(
    trt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engines", "build"]) == 3
    assert "--for SM89" in capsys.readouterr().err
    with pytest.raises(EngineError, match="pycuda is not installed"):
        Gpu()


class CudaError(Exception):
    """As pycuda.driver.Error, base of the others."""


class CudaMemoryError(CudaError):
    """As pycuda.driver.MemoryError."""


@pytest.mark.parametrize(
    ("theirs", "ours"), [(CudaError, DeviceLost), (CudaMemoryError, OutOfDeviceMemory)]
)
def test_errors_of_cuda_become_ours(theirs: type[Exception], ours: type[EngineError]) -> None:
    driver = SimpleNamespace(Error=CudaError, MemoryError=CudaMemoryError)
    with pytest.raises(ours, match="cuMemAlloc"), translated(driver):
        raise theirs("cuMemAlloc failed")


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 96445952 bytes.)", OutOfDeviceMemory),
        ("CUDA error: out of memory", OutOfDeviceMemory),
        ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)", DeviceLost),
    ],
)
def test_what_tensorrt_says_decides_what_is_done(said: str, ours: type[EngineError]) -> None:
    messages = Messages()
    messages.add(said)
    error = failure("NVIDIA L4: the network did not start", messages)
    assert type(error) is ours
    assert said in str(error)


def test_only_the_last_messages_are_kept() -> None:
    messages = Messages()
    assert "no reason" in messages.last
    for number in range(100):
        messages.add(str(number))
    assert messages.last == "99"
    assert len(messages.lines) == 20


@pytest.mark.parametrize("precision", PRECISIONS)
def test_correlating_in_the_plan_means_what_the_node_computes(precision: Precision) -> None:
    """The layers added behind the whitener are ``whitened @ unit patterns.T``."""
    engine, frames = OnnxEngine(catalogue.read_card()), real_frames()
    whitened, patterns = engine.whiten(frames), tensorrt.unit_patterns(catalogue.read_card())
    if precision == "fp16":
        whitened, patterns = (a.astype(np.float16).astype(np.float32) for a in (whitened, patterns))
    wanted = engine.decode(frames)
    off = np.abs(whitened @ patterns.T - wanted).max() / np.sqrt(np.mean(wanted**2))
    assert off < (MOST_SOFT / 10 if precision == "fp16" else 1e-5)
