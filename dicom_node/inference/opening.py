"""Which backend runs the networks: the best on this machine that passes its check."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from dicom_node.errors import EngineError
from dicom_node.inference.base import RobustEngine
from dicom_node.inference.catalogue import Card, read_card
from dicom_node.inference.comparison import check_frames, compare, reads_back
from dicom_node.inference.fingerprinter import (
    FingerprintCard,
    Fingerprinter,
    read_fingerprint_card,
)

_log = structlog.get_logger(__name__)

LEAST_READ_BACK = 0.95
Opener = Callable[[Card], RobustEngine]


def open_engine(choice: str = "auto", where: Path | None = None) -> RobustEngine:
    """Return W1's networks on a backend.

    Parameters
    ----------
    choice
        ``auto``, ``tensorrt``, ``cuda`` or ``onnx``. A GPU backend is compared with ONNX Runtime
        on the CPU before it is used, and backed by it when the GPU fails later.

    Raises
    ------
    EngineError
        The weights do not match their card, or the backend is not on this machine.
    """
    from dicom_node.inference.onnx import OnnxEngine
    from dicom_node.inference.resilient import ResilientEngine

    card = read_card(where)
    reference = OnnxEngine(card)
    if choice == "onnx":
        return reference
    engine, reasons = _best(choice, card, reference)
    if engine is not None:
        return ResilientEngine(engine, reference)
    if choice != "auto":
        why = "; ".join(reasons) or "no such backend"
        raise EngineError(f'{why}; set engine = "onnx" or "auto"')
    if reasons:
        _log.info("backend_chosen", engine=reference.name, instead_of=reasons)
    return reference


def open_accelerated(choice: str, card: Card) -> RobustEngine:
    """Return the best backend that `choice` allows and that passes its check, with no spare.

    Raises
    ------
    EngineError
        There is none; says why not, one after another.
    """
    from dicom_node.inference.onnx import OnnxEngine

    engine, reasons = _best(choice, card, OnnxEngine(card))
    if engine is None:
        why = "; ".join(reasons) or "no GPU backend is installed"
        raise EngineError(f'{why}; set watermark.inference = "off"')
    return engine


def _best(
    choice: str, card: Card, reference: RobustEngine
) -> tuple[RobustEngine | None, list[str]]:
    """Return the first backend that passes its check, else None and why each does not."""
    reasons = []
    for name, opener in _accelerated(choice):
        try:
            engine = passing(opener, card, reference)
        except EngineError as error:
            reasons.append(f"{name}: {error}")
        else:
            _log.info("backend_chosen", engine=engine.name)
            return engine, []
    return None, reasons


def passing(opener: Opener, card: Card, reference: RobustEngine) -> RobustEngine:
    """Open a backend and return it if it passes its check, else raise EngineError."""
    engine = opener(card)
    comparison = compare(engine, reference, check_frames(card))
    if not comparison.ok:
        raise EngineError(f"{engine.name} is out of tolerance: {comparison}")
    return engine


def list_engines() -> list[dict[str, object]]:
    """Return one row per network file: name, version, backend, file, bytes and SHA-256."""
    card, of_f = read_card(), read_fingerprint_card()
    files = [(card.name, card.version, *each) for each in {**card.files, **card.former}.items()]
    files += [("f", str(of_f.model), *each) for each in of_f.files.items()]
    return [
        {"name": name, "version": version, "backend": "onnx", "file": file,
         "bytes": (card.folder / file).stat().st_size if (card.folder / file).is_file() else None,
         "sha256": digest}
        for name, version, file, digest in files
    ]  # fmt: skip


def check_engines() -> list[dict[str, object]]:
    """Check every file against its card, and every backend that is here on real frames.

    ONNX Runtime on the CPU has to read what it marked; the others are compared with it. A backend
    that is not on this machine is no failure: its row says so and has no ``ok``.
    """
    card = read_card()
    rows = [_file_row(card, file) for file in (*card.files, *card.former)]
    rows += _fingerprint_rows(card)
    try:
        from dicom_node.inference.onnx import OnnxEngine

        reference = OnnxEngine(card)
        read = reads_back(reference, check_frames(card))
    except EngineError as error:
        return [*rows, {"name": "onnx", "ok": False, "detail": str(error)}]
    rows.append(
        {"name": "onnx", "ok": read >= LEAST_READ_BACK,
         "detail": f"reads {read:.3f} of the bits it marked (at least {LEAST_READ_BACK})"}
    )  # fmt: skip
    rows += [_backend_row(name, opener, card, reference) for name, opener in _accelerated("auto")]
    return rows


def _fingerprint_rows(card: Card) -> list[dict[str, object]]:
    """Check the networks of f: their files, and that they find nothing in what is unchanged."""
    try:
        of_f = read_fingerprint_card()
        rows = [_file_row(of_f, file) for file in of_f.files]
        network = Fingerprinter(of_f)
        frames = check_frames(card)[:, 0]
        highest = max(float(network.changed(each, network.code(each)).max()) for each in frames)
    except EngineError as error:
        return [{"name": "fingerprint", "ok": False, "detail": str(error)}]
    detail = f"unchanged frames score at most {highest:.2f} (below {of_f.alarm})"
    return [*rows, {"name": "fingerprint", "ok": highest < of_f.alarm, "detail": detail}]


def _backend_row(
    name: str, opener: Opener, card: Card, reference: RobustEngine
) -> dict[str, object]:
    try:
        engine = opener(card)
    except EngineError as error:
        return {"name": name, "detail": f"not on this machine: {error}"}
    try:
        comparison = compare(engine, reference, check_frames(card))
    except EngineError as error:
        return {"name": name, "ok": False, "detail": str(error)}
    return {"name": name, "ok": comparison.ok, "detail": str(comparison)}


def _file_row(card: Card | FingerprintCard, file: str) -> dict[str, object]:
    try:
        card.path(file)
    except EngineError as error:
        return {"name": file, "ok": False, "detail": str(error)}
    return {"name": file, "ok": True, "detail": "SHA-256 as on the card"}


def _accelerated(choice: str) -> list[tuple[str, Opener]]:
    """Return the backends beside ONNX Runtime on the CPU that `choice` allows, best first.

    With ``auto`` only those whose packages are installed, so that a plain machine loads nothing.
    """
    found: list[tuple[str, Opener]] = []
    if choice == "tensorrt" or (choice == "auto" and _installed("pycuda")):
        found += [
            (f"tensorrt {precision}", partial(_tensorrt, precision=precision))
            for precision in ("fp16", "fp32")
        ]
    if choice == "cuda" or (choice == "auto" and _cuda_provider()):
        found.append(("cuda", _cuda))
    return found


def _tensorrt(card: Card, precision: Any) -> RobustEngine:
    from dicom_node.inference.tensorrt import open_tensorrt

    return open_tensorrt(card, precision)


def _cuda(card: Card) -> RobustEngine:
    from dicom_node.inference.onnx_cuda import OnnxCudaEngine

    return OnnxCudaEngine(card)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _cuda_provider() -> bool:
    import onnxruntime as ort

    return "CUDAExecutionProvider" in ort.get_available_providers()
