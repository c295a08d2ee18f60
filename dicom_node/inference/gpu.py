"""The GPU, through pycuda and a TensorRT runtime: all that touches one is in this file.

Compiled plans are checked on any machine; this module has so far been read, not run: no GPU was
at hand when it was written. It is kept to memory, copies, launches and the translation of errors.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32
from dicom_node.inference.cuda_graph import CudaGraph
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory, Pipeline, bucket
from dicom_node.inference.tensorrt_compiler import Compiled, Messages, logger, runtime

LANES = 2
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16}
_MEMORY_WORDS = ("out of memory", "outofmemory", "memory allocation", "failed_allocation")


class Gpu:
    """The first GPU that CUDA shows this process (``CUDA_VISIBLE_DEVICES`` chooses).

    Its primary context is shared with whatever else of this process uses CUDA, and is made current
    only for the length of a call, so that any thread may call.
    """

    def __init__(self) -> None:
        self.cuda = _driver()
        with translated(self.cuda):
            self.cuda.init()
            if not self.cuda.Device.count():
                raise EngineError("CUDA finds no GPU")
            device = self.cuda.Device(0)
            self._context = device.retain_primary_context()
            self.name: str = device.name()
            self.capability = "SM{}{}".format(*device.compute_capability())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current for this thread; errors of CUDA become ours."""
        with translated(self.cuda):
            self._context.push()
            try:
                yield
            finally:
                self.cuda.Context.pop()

    def load(self, compiled: Compiled, constants: Mapping[str, Float32], most: int) -> Pipeline:
        """Put a plan and its constant inputs onto the GPU.

        Raises
        ------
        EngineError
            TensorRT refuses the plan, or it is not what its header says.
        """
        trt, messages = runtime(), Messages()
        log = logger(messages)
        with self.current():
            loader = trt.Runtime(log)
            engine = loader.deserialize_cuda_engine(compiled.plan)
            if engine is None:
                raise failure(f"{self.name}: the plan cannot be loaded", messages)
            _expect(engine, compiled)
            held = {
                tensor.name: self._upload(constants[tensor.name], tensor.dtype)
                for tensor in compiled.inputs
                if tensor.name in constants
            }
            lanes = [_GpuLane(self, engine, compiled, held, most, messages) for _ in range(LANES)]
        for lane in lanes:
            lane.owners = (loader, engine)
        return Pipeline(lanes, most)

    def _upload(self, value: Float32, dtype: str) -> Any:
        array = np.ascontiguousarray(value, _NUMPY[dtype])
        memory = self.cuda.mem_alloc(array.nbytes)
        self.cuda.memcpy_htod(memory, array)
        return memory


class _GpuLane:
    """Stream, execution context, pinned and device memory of one batch under way."""

    def __init__(
        self, gpu: Gpu, engine: Any, compiled: Compiled, constants: Mapping[str, Any], most: int,
        messages: Messages,
    ) -> None:  # fmt: skip
        self._gpu, self._messages, self._most = gpu, messages, most
        self.owners: tuple[Any, ...] = ()  # what TensorRT wants to outlive the context
        cuda = gpu.cuda
        self._stream = cuda.Stream()
        self._context, self._captures = _execution_context(engine)
        if self._context is None:
            raise failure(f"{gpu.name}: no execution context", messages)
        self._host, self._device = {}, dict(constants)
        for tensor in (*compiled.inputs, *compiled.outputs):
            if tensor.name not in constants:
                host = cuda.pagelocked_empty((most, *tensor.shape[1:]), np.float32)
                host[:] = 0
                self._host[tensor.name] = host
                self._device[tensor.name] = cuda.mem_alloc(host.nbytes)
            self._context.set_tensor_address(tensor.name, int(self._device[tensor.name]))
        self._graph: CudaGraph | None = None
        self._size = 0
        self._result: tuple[str, int] = ("", 0)

    def submit(self, frames: Float32, output: str) -> None:
        cuda, count = self._gpu.cuda, len(frames)
        size = bucket(count, self._most)
        host = self._host["frame"][:size]
        host[:count] = frames
        with self._gpu.current():
            cuda.memcpy_htod_async(self._device["frame"], host, self._stream)
            self._launch(size)
            cuda.memcpy_dtoh_async(self._host[output][:count], self._device[output], self._stream)
        self._result = (output, count)

    def collect(self) -> Float32:
        output, count = self._result
        with self._gpu.current():
            self._stream.synchronize()
        taken: Float32 = self._host[output][:count].copy()
        return taken

    def drain(self) -> None:
        with self._gpu.current():
            self._stream.synchronize()

    def _launch(self, size: int) -> None:
        """Start the network on `size` frames, by a captured graph once the size repeats."""
        if size != self._size:
            self._graph = None
            shape = (size, *self._host["frame"].shape[1:])
            if not self._context.set_input_shape("frame", shape):
                raise failure(f"{self._gpu.name}: {size} frames refused", self._messages)
            self._size = size
            self._enqueue()  # a context has to run once after a change of shape before a capture
        elif not self._captures:
            self._enqueue()
        else:
            self._graph = self._graph or CudaGraph(self._stream.handle, self._enqueue)
            self._graph.launch()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise failure(f"{self._gpu.name}: the network did not start", self._messages)


def _execution_context(engine: Any) -> tuple[Any, bool]:
    """Return an execution context, and whether its launches are ours to capture into graphs.

    TensorRT for RTX captures by itself, because it may still exchange kernels behind a launch.
    """
    trt = runtime()
    if not hasattr(trt, "CudaGraphStrategy"):
        return engine.create_execution_context(), True
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config), False


def _expect(engine: Any, compiled: Compiled) -> None:
    """Refuse a plan whose inputs and outputs are not what its header says (EngineError)."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {name: tuple(engine.get_tensor_shape(name)) for name in names}
    said = {tensor.name: tensor.shape for tensor in (*compiled.inputs, *compiled.outputs)}
    if found != said:
        raise EngineError(f"the plan takes and gives {found}, its header says {said}")


def failure(what: str, messages: Messages) -> EngineError:
    """Return the error for what TensorRT could not do, by what it said last."""
    said = messages.last
    kind = OutOfDeviceMemory if any(word in said.lower() for word in _MEMORY_WORDS) else DeviceLost
    return kind(f"{what}: {said}")


@contextmanager
def translated(cuda: Any) -> Iterator[None]:
    """Turn errors of pycuda's driver module `cuda` into ours."""
    try:
        yield
    except cuda.MemoryError as error:
        raise OutOfDeviceMemory(f"the GPU is out of memory: {error}") from error
    except cuda.Error as error:
        raise DeviceLost(f"the GPU does not answer any more: {error}") from error


def _driver() -> Any:
    """Return ``pycuda.driver`` (EngineError where it or the NVIDIA driver is missing)."""
    if importlib.util.find_spec("pycuda") is None:
        raise EngineError('pycuda is not installed; pip install "dicom-node[gpu]"')
    try:
        return importlib.import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        raise EngineError(f"pycuda does not load, is the NVIDIA driver here? {error}") from error
