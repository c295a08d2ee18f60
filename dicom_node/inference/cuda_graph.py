"""A CUDA graph: one call launches a whole network. pycuda has no graphs, the driver has.

Only data-centre TensorRT needs it; not run yet, see :mod:`gpu`.

References
----------
CUDA Driver API, "Stream Management" (capture) and "Graph Management".
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from dicom_node.errors import EngineError
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CudaGraph:
    """What `enqueue` puts into a stream, captured once, launched often.

    The context must be current, here and in :meth:`launch`.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        self._driver, self._stream = _driver(), ctypes.c_void_p(stream)
        graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            enqueue()
        finally:  # a stream left capturing takes no other work
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        flags = ctypes.c_ulonglong(0)
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(self._ready), graph, flags)
        self._call("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Put the graph into its stream."""
        self._call("cuGraphLaunch", self._ready, self._stream)

    def __del__(self) -> None:
        # The driver frees everything with the context; an error here has nobody to go to.
        if getattr(self, "_ready", None):
            self._driver.cuGraphExecDestroy(self._ready)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{name}: the GPU is out of memory")
        if status:
            raise DeviceLost(f"{name}: CUDA error {status}")


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise EngineError(f"the NVIDIA driver is not here: {error}") from error
