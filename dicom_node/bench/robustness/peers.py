"""Other people's watermarks on the same frames: RivaGAN, dwtDctSvd, blind-watermark.

``invisible-watermark`` asks for torch, which it needs only to move arrays about; its weights and
its dwtDctSvd module are used here as the package ships them, without importing the rest.

Two of the three hide their bits in colour, which most medical frames do not have. Here they may:
a frame becomes a picture of three equal channels, the marked one keeps its colour, and each channel
is attacked as a grey picture by itself. That spares them the conversion to grey and the coarser
chroma of JPEG.

References
----------
Zhang et al., "Robust invisible video watermarking with attention", 2019 (RivaGAN).
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Picture, rounded
from dicom_node.errors import EngineError

Bits = NDArray[np.uint8]
Coloured = NDArray[np.uint8]  # (rows, columns, 3), blue green red

BITS = 32  # all that RivaGAN's weights take
_INSTALL = "pip install --no-deps {}; pip install PyWavelets"
_RIVA_THRESHOLD = 0.52  # the package's own
_PASSWORD = 1


class Peer(Protocol):
    """A watermark of another kind; one process uses it from one thread."""

    name: str

    def mark(self, picture: Picture, bits: Bits) -> Coloured:
        """Return a grey picture with 32 bits in it."""
        ...

    def read(self, picture: Coloured) -> Bits | None:
        """Return the 32 bits read, right or wrong; None where the peer fails on the picture."""
        ...


class RivaGan:
    """RivaGAN's networks, in ONNX Runtime."""

    name = "RivaGAN"

    def __init__(self) -> None:
        folder = _folder("imwatermark", "invisible-watermark")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._encoder, self._decoder = (
            ort.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
            for file in ("rivagan_encoder.onnx", "rivagan_decoder.onnx")
        )

    def mark(self, picture: Picture, bits: Bits) -> Coloured:
        """See `Peer`."""
        inputs = {"frame": _clip_of(_coloured(picture)), "data": bits.astype(np.float32)[None]}
        frame = self._encoder.run(None, inputs)[0][0, :, 0]
        # Cut, not rounded, as the package does it.
        coloured = ((np.clip(frame, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
        return np.ascontiguousarray(coloured.transpose(1, 2, 0))

    def read(self, picture: Coloured) -> Bits | None:
        """See `Peer`."""
        found = self._decoder.run(None, {"frame": _clip_of(picture)})[0][0]
        return np.asarray(found > _RIVA_THRESHOLD, np.uint8)


class DwtDctSvd:
    """invisible-watermark's dwtDctSvd: the largest singular value of wavelet blocks."""

    name = "dwtDctSvd"

    def __init__(self) -> None:
        folder = _folder("imwatermark", "invisible-watermark")
        self._module = _module(folder / "dwtDctSvd.py", "PyWavelets")

    def mark(self, picture: Picture, bits: Bits) -> Coloured:
        """See `Peer`."""
        embedder = self._module.EmbedDwtDctSvd(list(bits), wmLen=BITS)
        return np.asarray(embedder.encode(_coloured(picture)), np.uint8)

    def read(self, picture: Coloured) -> Bits | None:
        """See `Peer`."""
        if min(picture.shape[:2]) < 8 or picture.shape[0] * picture.shape[1] < 64 * BITS:
            return None
        embedder = self._module.EmbedDwtDctSvd([], wmLen=BITS)
        return np.asarray(embedder.decode(picture), np.uint8)


class BlindWatermark:
    """blind-watermark: singular values of shuffled DCT blocks."""

    name = "blind-watermark"

    def __init__(self) -> None:
        _folder("blind_watermark", "blind-watermark")
        module = _imported("blind_watermark", "PyWavelets")
        module.bw_notes.close()
        self._class: Callable[..., Any] = module.WaterMark

    def mark(self, picture: Picture, bits: Bits) -> Coloured:
        """See `Peer`."""
        embedder = self._class(password_img=_PASSWORD, password_wm=_PASSWORD)
        embedder.read_img(img=_coloured(picture))
        embedder.read_wm(bits.astype(bool), mode="bit")
        return rounded(embedder.embed())

    def read(self, picture: Coloured) -> Bits | None:
        """See `Peer`."""
        if picture.shape[0] * picture.shape[1] < 64 * (BITS + 1) or min(picture.shape[:2]) < 8:
            return None
        reader = self._class(password_img=_PASSWORD, password_wm=_PASSWORD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # its k-means where all bits are alike
            found = reader.extract(embed_img=picture, wm_shape=BITS, mode="bit")
        return np.asarray(found, np.uint8)


PEERS: tuple[Callable[[], Peer], ...] = (RivaGan, DwtDctSvd, BlindWatermark)


def available() -> tuple[list[str], list[str]]:
    """Return the names of the peers that can be run here, and why the others cannot."""
    there, missing = [], []
    for make in PEERS:
        try:
            there.append(make().name)
        except EngineError as error:
            missing.append(str(error))
    return there, missing


def opened(names: Sequence[str]) -> list[Peer]:
    """Return the named peers (EngineError if one cannot be run)."""
    return [make() for make in PEERS if getattr(make, "name", "") in names]


def _folder(module: str, package: str) -> Path:
    """Return where a package is installed, without importing it (EngineError)."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"{package} is not installed: {_INSTALL.format(package)}")
    return Path(next(iter(spec.submodule_search_locations)))


def _module(file: Path, needs: str) -> ModuleType:
    """Import one file of a package whose other files need what is not here (EngineError)."""
    spec = importlib.util.spec_from_file_location(f"_peer_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise EngineError(f"{file}: not the module that was expected")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise EngineError(f"{file.name} needs {needs}: {error}") from error
    return module


def _imported(name: str, needs: str) -> ModuleType:
    """Import a package that sets the start method of processes, and undo that (EngineError)."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)  # it refuses to be imported otherwise
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f"{name} needs {needs}: {error}") from error
    finally:
        multiprocessing.set_start_method(before, force=True)


def _coloured(picture: Picture) -> Coloured:
    return np.repeat(picture[..., None], 3, axis=2)


def _clip_of(picture: Coloured) -> NDArray[np.float32]:
    """Return the picture as RivaGAN takes it: ``(1, 3, 1, rows, columns)`` in -1..1."""
    scaled = picture.astype(np.float32) / np.float32(127.5) - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None, :, None])
