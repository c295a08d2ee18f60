"""What `dicom_node/inference/gpu.py` asks of pycuda, TensorRT and libcuda, kept to their rules.

No GPU: device memory is NumPy, the networks run in ONNX Runtime. What is emulated are the rules a
caller can break unnoticed on a fast GPU: work waits in its stream until somebody synchronises, a
context must be current, a copy must fit, an input must stay inside its profile, a captured graph
replays exactly what was captured. It says nothing of speed, or of what a real driver returns.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cpu_lanes import Device as Networks

from dicom_node.inference.base import Float32
from dicom_node.inference.tensorrt_compiler import Compiled, Tensor

Work = Callable[[], None]


class Memory:
    """One allocation; its address is an int, as pycuda's is."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self.data = np.zeros(nbytes, np.uint8)
        self.address = 0x7000_0000 + 0x1000_0000 * len(driver.memory)
        driver.memory[self.address] = self

    def __int__(self) -> int:
        return self.address

    def array(self, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Return its first bytes as an array."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.data[:count].view(dtype).reshape(shape)


class Stream:
    """Work in order, done when somebody waits for it; or recorded, while capturing."""

    def __init__(self, driver: Driver) -> None:
        driver.must_be_current()
        self.driver, self.waiting, self.captured = driver, [], None
        self.handle = 100 + len(driver.streams)
        driver.streams[self.handle] = self

    def add(self, work: Work) -> None:
        """Put work into the stream."""
        (self.waiting if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        """Do all that waits."""
        self.driver.must_be_current()
        self.driver.fail("synchronize")
        while self.waiting:
            self.waiting.pop(0)()


class Driver:
    """As ``pycuda.driver``. `faults` maps an operation to how often it works before it fails."""

    class Error(Exception):
        """As pycuda.driver.Error."""

    class MemoryError(Error):  # noqa: A001  # pycuda's name
        """As pycuda.driver.MemoryError."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus, self.current = gpus, 0
        self.memory: dict[int, Memory] = {}
        self.streams: dict[int, Stream] = {}
        self.faults: dict[str, int] = {}
        self.done: list[str] = []
        self.Context = SimpleNamespace(pop=self._pop)
        self.Device = self._Devices(self)
        self.Stream = lambda: Stream(self)

    class _Devices:
        def __init__(self, driver: Driver) -> None:
            self.driver = driver

        def count(self) -> int:
            return self.driver.gpus

        def __call__(self, index: int) -> Any:
            context = SimpleNamespace(push=self.driver._push)
            return SimpleNamespace(
                name=lambda: "Emulated L4", compute_capability=lambda: (8, 9),
                retain_primary_context=lambda: context,
            )  # fmt: skip

    def init(self) -> None:
        """As cuInit."""

    def _push(self) -> None:
        self.current += 1

    def _pop(self) -> None:
        self.must_be_current()
        self.current -= 1

    def must_be_current(self) -> None:
        """Refuse what is done without a context."""
        if self.current < 1:
            raise self.Error("no context is current")

    def fail(self, operation: str) -> None:
        """Count an operation, and let it fail when its time has come."""
        self.done.append(operation)
        if operation in self.faults:
            self.faults[operation] -= 1
            if self.faults[operation] < 0:
                kind = self.MemoryError if operation == "mem_alloc" else self.Error
                raise kind(f"{operation} failed")

    def mem_alloc(self, nbytes: int) -> Memory:
        """As cuMemAlloc."""
        self.must_be_current()
        self.fail("mem_alloc")
        return Memory(self, nbytes)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """As cuMemHostAlloc; what is in it is anybody's guess."""
        self.must_be_current()
        return np.full(shape, np.nan, dtype)

    def memcpy_htod(self, target: Memory, source: Any) -> None:
        """As cuMemcpyHtoD."""
        self.must_be_current()
        self._copy(target.data, source.reshape(-1).view(np.uint8))

    def memcpy_htod_async(self, target: Memory, source: Any, stream: Stream) -> None:
        """As cuMemcpyHtoDAsync: reads the host's memory when its turn has come."""
        self.must_be_current()
        assert source.flags.c_contiguous
        stream.add(lambda: self._copy(target.data, source.reshape(-1).view(np.uint8)))

    def memcpy_dtoh_async(self, target: Any, source: Memory, stream: Stream) -> None:
        """As cuMemcpyDtoHAsync."""
        self.must_be_current()
        assert target.flags.c_contiguous
        whole = target.reshape(-1).view(np.uint8)
        stream.add(lambda: np.copyto(whole, source.data[: whole.size]))

    def _copy(self, target: Any, source: Any) -> None:
        assert source.size <= target.size, "a copy does not fit"
        np.copyto(target[: source.size], source)


class Engine:
    """As ICudaEngine, of one network."""

    def __init__(self, trt: Runtime, compiled: Compiled, messages: Any) -> None:
        self.trt, self.compiled, self.messages = trt, compiled, messages
        self.tensors = (*compiled.inputs, *compiled.outputs)
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        """As TensorRT's."""
        return self.tensors[index].name

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As TensorRT's."""
        return next(tensor.shape for tensor in self.tensors if tensor.name == name)

    def create_runtime_config(self) -> Any:
        """As TensorRT for RTX's."""
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, config: Any = None) -> Context | None:
        """As TensorRT's; None when there is no memory for it."""
        assert (config is not None) == self.trt.captures_itself
        if self.trt.no_room:
            self.messages.add("Error Code 2: OutOfMemory")
            return None
        return Context(self)


class Context:
    """As IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.driver = engine, engine.trt.driver
        self.addresses: dict[str, int] = {}
        self.count = 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        """As TensorRT's."""
        assert address in self.driver.memory
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """As TensorRT's: refuses what is outside the profile."""
        [tensor] = [each for each in self.engine.compiled.inputs if each.name == name]
        least, _, most = tensor.profile
        self.count = shape[0]
        return shape[1:] == tensor.shape[1:] and least[0] <= shape[0] <= most[0]

    def execute_async_v3(self, handle: int) -> bool:
        """As TensorRT's: enqueues, and says False where it cannot."""
        self.driver.must_be_current()
        assert set(self.addresses) == {tensor.name for tensor in self.engine.tensors}
        try:
            self.driver.fail("enqueue")
        except self.driver.Error:
            self.engine.messages.add("Error Code 1: Cuda Runtime (unspecified launch failure)")
            return False
        count = self.count
        self.driver.streams[handle].add(lambda: self._compute(count))
        return True

    def _compute(self, count: int) -> None:
        self.driver.done.append("compute")
        frames = self._array("frame", np.float32, (count, 1, 128, 128)).copy()
        for tensor in self.engine.compiled.outputs:
            target = self._array(tensor.name, np.float32, (count, *tensor.shape[1:]))
            target[:] = self._output(tensor, frames)

    def _output(self, tensor: Tensor, frames: Float32) -> Float32:
        if tensor.name != "soft":
            return self.engine.trt.networks.run(frames, tensor.name)
        [patterns] = [each for each in self.engine.compiled.inputs if each.name == "patterns"]
        dtype = np.float16 if patterns.dtype == "HALF" else np.float32
        unit = self._array("patterns", dtype, patterns.shape).astype(np.float32)
        product: Float32 = self.engine.trt.networks.run(frames, "whitened") @ unit.T
        return product

    def _array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        return self.driver.memory[self.addresses[name]].array(dtype, shape)


class Runtime:
    """As the TensorRT module: with graphs of its own (RTX), or without (data centre)."""

    def __init__(
        self, driver: Driver, networks: Networks, compiled: dict[bytes, Compiled], *, rtx: bool
    ) -> None:
        self.driver, self.networks, self.plans = driver, networks, compiled
        self.captures_itself, self.no_room = rtx, False
        if rtx:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)

    def Runtime(self, log: Any) -> Any:  # noqa: N802  # TensorRT's name
        """As trt.Runtime: a plan it does not know is refused with a message and None."""

        def deserialize(plan: bytes) -> Engine | None:
            self.driver.must_be_current()
            if plan not in self.plans:
                log.add("Serialization assertion failed: the plan is for another version")
                return None
            return Engine(self, self.plans[plan], log)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class GraphDriver:
    """As libcuda's graphs, called through ctypes."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.graphs = driver, {}

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:  # noqa: N802
        self.driver.streams[stream.value].captured = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        owner = self.driver.streams[stream.value]
        graph._obj.value = len(self.graphs) + 1
        self.graphs[graph._obj.value], owner.captured = owner.captured, None
        return 0

    def cuGraphInstantiateWithFlags(self, ready: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        ready._obj.value = graph.value
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        return 0

    def cuGraphExecDestroy(self, ready: Any) -> int:  # noqa: N802
        return 0

    def cuGraphLaunch(self, ready: Any, stream: Any) -> int:  # noqa: N802
        self.driver.must_be_current()
        self.driver.done.append("launch")
        if self.driver.faults.get("launch", 1) == 0:
            return 719
        for work in self.graphs[ready.value]:
            self.driver.streams[stream.value].add(work)
        return 0
