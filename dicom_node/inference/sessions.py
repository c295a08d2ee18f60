"""ONNX Runtime on one CPU thread: how every network of ours is opened there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.errors import EngineError

if TYPE_CHECKING:
    import onnxruntime as ort


def open_session(path: Path) -> ort.InferenceSession:
    """Open a network that has been checked against its card.

    One thread a session: the workers are the parallelism, and spinning thread pools on shared
    cores cost a factor of six (measured). ONNX Runtime is loaded only here, so that a machine
    without it still restores.

    Raises
    ------
    EngineError
        ONNX Runtime is missing, or cannot load the file.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineError(f"{path}: ONNX Runtime is not installed: {error}") from error
    # The published wheels carry an uploader; a node in a hospital sends nothing it was not told to.
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from error


def expect(
    session: ort.InferenceSession, path: Path, takes: tuple[int, ...], gives: tuple[int, ...]
) -> None:
    """Refuse a network that does not turn ``frame (batch, *takes)`` into ``(batch, *gives)``.

    Raises
    ------
    EngineError
        Another shape, another name, or a batch axis of one size only.
    """
    inputs = {each.name: _told(each) for each in session.get_inputs()}
    outputs = [_told(each) for each in session.get_outputs()]
    if inputs != {"frame": (None, *takes)} or outputs != [(None, *gives)]:
        raise EngineError(
            f"{path}: takes {inputs} and gives {outputs}, the card says frame {takes} and {gives}"
            " of any batch; the networks do not fit their card: reinstall"
        )


def _told(each: ort.NodeArg) -> tuple[object, ...]:
    """Return a shape; None for an axis of any size, the type in front if it is not float."""
    shape = tuple(axis if isinstance(axis, int) else None for axis in each.shape)
    return shape if each.type == "tensor(float)" else (each.type, *shape)
