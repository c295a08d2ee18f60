"""Both networks of W1 in TensorRT, from the same ONNX files as every other backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import structlog

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.catalogue import Card, load_patterns, patterns_id
from dicom_node.inference.lanes import OutOfDeviceMemory
from dicom_node.inference.plans import ANY_GPU, PlanKey, cache_folder, plan_for, write_plan
from dicom_node.inference.tensorrt_compiler import (
    PRECISIONS,
    Batches,
    Compiled,
    Precision,
    compile_plan,
    runtime_name,
)

_log = structlog.get_logger(__name__)

BATCHES = Batches()
WHITENER, STRENGTH = "d1.onnx", "strength.onnx"
NETWORKS = (WHITENER, STRENGTH)


class Network(Protocol):
    """One network on a device; `lanes.Pipeline` is one."""

    def run(self, frames: Float32, output: str) -> Float32:
        """Return one output of the network for every frame."""


class TensorRtEngine(RobustEngine):
    """Both networks of W1 on a device; D1's correlators run there as well.

    Parameters
    ----------
    networks
        By file name: `WHITENER` with outputs ``whitened`` and ``soft``, `STRENGTH` with
        ``strengths``.
    """

    def __init__(self, card: Card, networks: Mapping[str, Network], precision: Precision) -> None:
        self.name = f"tensorrt {precision}"
        self.side, self.code_bits, self.grid = card.side, card.code_bits, card.grid
        self.loop = card.loop
        self._patterns = load_patterns(card)
        self._model_id = patterns_id(self._patterns)
        self._whitener, self._strength = networks[WHITENER], networks[STRENGTH]

    @property
    def patterns(self) -> Int8:
        """Carrier patterns, see `RobustEngine`."""
        return self._patterns

    @property
    def model_id(self) -> bytes:
        """Which patterns a record refers to."""
        return self._model_id

    def whiten(self, frames: Float32) -> Float32:
        """Run D1's whitener, see `RobustEngine`."""
        return self._run(self._whitener, frames, "whitened")

    def decode(self, frames: Float32) -> Float32:
        """Run D1 with its correlators, so that 160 numbers come back instead of 16,384."""
        return self._run(self._whitener, frames, "soft")

    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network, see `RobustEngine`."""
        return np.rint(self._run(self._strength, frames, "strengths"))

    def _run(self, network: Network, frames: Float32, output: str) -> Float32:
        wanted = (1, self.side, self.side)
        if frames.shape[1:] != wanted or not len(frames):
            raise EngineError(f"asked with {frames.shape}, expected (frames, {wanted})")
        return network.run(frames, output)


def open_tensorrt(card: Card, precision: Precision) -> TensorRtEngine:
    """Return the engine on this machine's GPU; its plans come from the cache, or are built now.

    Raises
    ------
    EngineError
        No TensorRT, no pycuda, no GPU, or a GPU that this TensorRT does not know.
    """
    from dicom_node.inference.gpu import Gpu

    runtime_name()
    gpu = Gpu()
    constants = {WHITENER: {"patterns": unit_patterns(card)}, STRENGTH: {}}
    networks = {}
    for file in NETWORKS:
        key = plan_key(card, file, precision, gpu.name, gpu.capability)
        build = partial(compile_network, card, key)
        try:
            networks[file] = gpu.load(plan_for(key, build), constants[file], key.most)
        except OutOfDeviceMemory:
            raise
        except EngineError as error:
            # The cache says it is ours, TensorRT says no: of another driver, perhaps.
            _log.warning("plan_refused", reason=str(error))
            compiled = plan_for(key, build, afresh=True)
            networks[file] = gpu.load(compiled, constants[file], key.most)
    return TensorRtEngine(card, networks, precision)


def plan_key(
    card: Card, file: str, precision: Precision, gpu: str, capability: str
) -> PlanKey:  # fmt: skip
    """Return what a plan of one network is for, on this TensorRT."""
    digest = card.files.get(file, "")
    return PlanKey(file, digest, precision, BATCHES.most, gpu, capability, runtime_name())


def compile_network(card: Card, key: PlanKey) -> Compiled:
    """Compile the network that `key` names and check that it is of the shape the card says.

    Raises
    ------
    EngineError
        The file is not the card's, or of another shape, or cannot be compiled.
    """
    bits = card.code_bits if key.network == WHITENER else 0
    compiled = compile_plan(
        card.path(key.network), key.precision, BATCHES, key.capability, correlate_bits=bits
    )
    found = {t.name: t.shape[1:] for t in (*compiled.inputs, *compiled.outputs)}
    wanted = _shapes(card, key.network)
    if found != wanted:
        raise EngineError(
            f"{card.folder / key.network}: takes and gives {found}, the card says {wanted}"
        )
    return compiled


def _shapes(card: Card, file: str) -> dict[str, tuple[int, ...]]:
    """Return what goes in and out of a network, without the first axis."""
    frame = {"frame": (1, card.side, card.side)}
    if file == STRENGTH:
        return {**frame, "strengths": (card.grid, card.grid)}
    samples = card.side**2
    return {
        **frame, "patterns": (samples,), "whitened": (samples,), "soft": (card.code_bits,),
    }  # fmt: skip


def unit_patterns(card: Card) -> Float32:
    """Return the carrier patterns at unit norm, ``(code_bits, side * side)``.

    A product with them is a soft bit, far from the largest half-precision number.
    """
    patterns = load_patterns(card).astype(np.float32)
    unit: Float32 = patterns / np.linalg.norm(patterns, axis=1, keepdims=True)
    return unit


def build_plans(
    card: Card, capabilities: Iterable[str] = (), folder: Path | None = None
) -> list[dict[str, Any]]:
    """Compile every network in every precision and keep the plans; return a row for each.

    Parameters
    ----------
    capabilities
        ``SM89`` and so on: for GPUs that are elsewhere. None: for the GPU of this machine.

    Raises
    ------
    EngineError
        See :func:`compile_network`; or there is no GPU here and none was named.
    """
    runtime_name()
    folder = folder or cache_folder()
    targets = [(ANY_GPU, capability) for capability in capabilities] or [_this_gpu()]
    rows: list[dict[str, Any]] = []
    for gpu, capability in targets:
        for file in NETWORKS:
            for precision in PRECISIONS:
                start = perf_counter()
                key = plan_key(card, file, precision, gpu, capability)
                compiled = compile_network(card, key)
                write_plan(folder / key.file, key, compiled)
                rows.append(
                    {"network": file, "for": gpu or capability, "precision": precision,
                     "runtime": key.runtime, "file": str(folder / key.file),
                     "bytes": len(compiled.plan), "seconds": round(perf_counter() - start, 2)}
                )  # fmt: skip
    return rows


def _this_gpu() -> tuple[str, str]:
    from dicom_node.inference.gpu import Gpu

    try:
        gpu = Gpu()
    except EngineError as error:
        raise EngineError(f"{error}; name what to build for instead: --for SM89") from error
    return gpu.name, gpu.capability
