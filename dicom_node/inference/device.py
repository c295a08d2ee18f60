"""What E1 does around its networks, as two graphs for a device: its loop, the residual, the sum.

The residual that is added is rebuilt from the integers of the record alone, by the arithmetic of
`watermark.synthesis`, to the last bit; how those integers were chosen is rounded as the device
likes, and by rules that the caller hands in (`watermark.choosing`: strengths, crest, softness). The
graphs have no weights and go with any model of this shape. They run in ONNX Runtime and compile in
TensorRT; no GPU has run them, and the node does not call them yet (docs/DESIGN.md).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import file_as_on_card, folder
from dicom_node.inference.sessions import open_session
from dicom_node.inference.tensorrt_compiler import Batches, Compiled, Shapes, compile_plan

if TYPE_CHECKING:
    import onnxruntime as ort

Int32 = NDArray[np.int32]
Flags = NDArray[np.bool_]

CHOOSE, PUT_ON = "choose.onnx", "put_on.onnx"
MOST_SHIFT = 29  # of the residual's scale; the carrier's is at most `MOST_CARRIER_SHIFT`
MOST_CARRIER_SHIFT = 19
SIDES_PX = (48, 512, 1024)  # least, usual and most of a frame that a plan is compiled for
BATCHES = Batches(1, 8, 16)


class Covers(NamedTuple):
    """Frames of one size that are to be marked.

    Attributes
    ----------
    display, host
        Display values 0..1 and stored values, ``(batch, rows, columns)``.
    small
        As the networks see them, ``(batch, side, side)``.
    words
        Code words -1/+1, ``(batch, K)``.
    strengths
        As they are to be recorded, ``(batch, grid, grid)`` in 0..7: the strength network's, after
        the caller's rule.
    crest
        Where the carrier is cut, in its standard deviations, ``(batch,)``.
    polarity
        -1 where display falls as stored rises, else 1, ``(batch,)``.
    low, high
        Stored values outside this range hardly change, ``(batch,)``.
    most_rms, local_rms
        The budget: the lesser of the first, and the second times the root of the share that
        carries; display values, ``(batch,)``.
    blur
        Sigmas, horizontal and vertical, through which the mark is to be read; None: as it is.
    """

    display: Float32
    host: Int32
    small: Float32
    words: Float32
    strengths: Int32
    crest: Float32
    polarity: Float32
    low: Int32
    high: Int32
    most_rms: Float32
    local_rms: Float32
    blur: tuple[float, float] | None


class Choices(NamedTuple):
    """What E1 chose for every frame, and how it reads; rows as in `Covers`.

    Attributes
    ----------
    amplitudes
        ``(batch, K)`` in -31..31.
    carrier_scale
        Gain and shift, ``(batch, 2)``.
    size, share
        Rms of the residual before it is scaled, and the part of the frame that carries.
    before, after
        Soft bits times the code word, of the cover and of the cover with a residual of rms `tried`.
    """

    amplitudes: Int32
    carrier_scale: Int32
    size: Float32
    share: Float32
    tried: Float32
    before: Float32
    after: Float32


class Residuals(NamedTuple):
    """The integers a record keeps of each frame: see `watermark.synthesis.RobustRecord`."""

    amplitudes: Int32
    strengths: Int32
    carrier_scale: Int32
    scale: Int32


class DeviceMarking:
    """E1's closed loop, synthesis and addition for whole batches.

    Parameters
    ----------
    engine
        Runs D1; its loop has one turn.
    provider
        Of ONNX Runtime, that runs the graphs; None: the CPU, on one thread.

    Raises
    ------
    EngineError
        A graph is not what its card says, or the model is of another shape than the graphs.
    """

    def __init__(
        self, engine: RobustEngine, where: Path | None = None, *, provider: str | None = None
    ) -> None:
        if (engine.side, engine.code_bits, engine.grid) != (128, 160, 16):
            raise EngineError("the device's graphs are for 128 x 128, 160 bits and 16 x 16 cells")
        if len(engine.loop.step) != 1:
            raise EngineError(f"the device's graphs know one turn, not {len(engine.loop.step)}")
        self._engine = engine
        self._choose = _opened(CHOOSE, where, provider)
        self._put_on = _opened(PUT_ON, where, provider)

    @cached_property
    def _patterns(self) -> Float32:
        return self._engine.patterns.astype(np.float32)

    def choose(self, covers: Covers, *, softness: float | None = None) -> Choices:
        """Let E1 choose, and look through D1 at what comes of it.

        Parameters
        ----------
        softness
            Instead of the loop's own: see `RobustEngine.encode`.
        """
        engine, count = self._engine, len(covers.host)
        rows, columns = covers.host.shape[1:]
        blur_rows, blur_columns = blurs(engine.side, covers.blur)
        blurred = (blur_rows @ covers.small @ blur_columns)[:, None].astype(np.float32)
        before = engine.decode(blurred)
        [step], [own] = engine.loop
        shrink_rows = shrink(rows, engine.side, min(rows, columns))
        shrink_columns = shrink(columns, engine.side, min(rows, columns))
        asked = {
            "patterns": self._patterns, "words": covers.words, "soft": before,
            "strengths": covers.strengths, "crest": _column(covers.crest),
            "polarity": _column(covers.polarity), "step": np.full((count, 1), step, np.float32),
            "softness": np.full((count, 1), softness or own, np.float32),
            "most_rms": _column(covers.most_rms), "local_rms": _column(covers.local_rms),
            "small": covers.small, "display": covers.display, "host": covers.host,
            "low": _plane(covers.low), "high": _plane(covers.high),
            "shrink_rows": shrink_rows, "shrink_columns": np.ascontiguousarray(shrink_columns.T),
            "blur_rows": blur_rows, "blur_columns": blur_columns,
            **_places(engine, rows, columns),
        }  # fmt: skip
        found = self._choose.run(None, asked)
        amplitudes, gain, divisor, size, share, tried, picture = found
        after = engine.decode(picture)
        shift = np.rint(np.log2(divisor[:, 0, 0])).astype(np.int32)
        return Choices(
            amplitudes, np.stack([gain[:, 0, 0], shift], axis=1),
            size[:, 0], share[:, 0], tried[:, 0], before * covers.words, after * covers.words,
        )  # fmt: skip

    def put_on(
        self, host: Int32, residuals: Residuals, low: Int32, high: Int32, padding: Int32
    ) -> tuple[Int32, list[Flags]]:
        """Add each residual where it may be: `watermark.synthesis.apply`, to the last bit.

        Parameters
        ----------
        host
            Stored values, ``(batch, rows, columns)``, at most 17 bits with their sign.
        low, high, padding
            Stored range ``(batch,)`` and padding range ``(batch, 2)``, inclusive; ``1, 0``: none.

        Returns
        -------
        marked, exceptions
            Of the host's shape; and of each frame a flag for every doubtful pixel, as a record
            keeps them, none where no pixel is an exception.

        Raises
        ------
        EngineError
            A scale whose shift does not fit into 32 bits here: the CPU has to do that frame.
        """
        if (
            (residuals.carrier_scale[:, 1] > MOST_CARRIER_SHIFT).any()
            or (residuals.scale[:, 1] > MOST_SHIFT).any()
            or (residuals.carrier_scale[:, 0] < 1).any()
        ):
            raise EngineError("a scale of the residual is out of the device's range")
        rows, columns = host.shape[1:]
        asked = {
            "patterns": self._patterns, "amplitudes": residuals.amplitudes,
            "strengths": residuals.strengths, "host": host,
            "carrier_gain": _plane(residuals.carrier_scale[:, 0]),
            "carrier_divisor": _plane(1 << residuals.carrier_scale[:, 1]),
            "gain": _plane(residuals.scale[:, 0]), "divisor": _plane(1 << residuals.scale[:, 1]),
            "low": _plane(low), "high": _plane(high),
            "pad_low": _plane(padding[:, 0]), "pad_high": _plane(padding[:, 1]),
            **_places(self._engine, rows, columns),
        }  # fmt: skip
        marked, doubtful, stayed = self._put_on.run(None, asked)
        flags = [stays[doubts] for stays, doubts in zip(stayed, doubtful, strict=True)]
        return marked, [each if each.any() else each[:0] for each in flags]


def compile_graphs(capability: str, where: Path | None = None) -> dict[str, Compiled]:
    """Return the TensorRT plans of both graphs, in float, for a compute capability.

    Raises
    ------
    EngineError
        A graph is not what its card says, or this TensorRT cannot compile it for that GPU.
    """
    return {
        file: compile_plan(_checked(file, where), "fp32", BATCHES, capability,
                           profiles=profiles_of(file))
        for file in (CHOOSE, PUT_ON)
    }  # fmt: skip


def profiles_of(file: str) -> dict[str, Shapes]:
    """Return least, usual and most of every input of a graph that has no fixed shape."""
    sizes = tuple(zip(BATCHES, SIDES_PX, strict=True))

    def of(*axes: str | int) -> Shapes:
        least, usual, most = (
            tuple({"batch": count, "side": side}.get(str(axis), axis) for axis in axes)
            for count, side in sizes
        )
        return least, usual, most  # type: ignore[return-value]  # every name has a number

    shared = {"host": of("batch", "side", "side"), **dict.fromkeys(_PLACES, of(3, "side"))}
    row = of("batch", 1)
    plane = of("batch", 1, 1)
    if file == PUT_ON:
        numbers = ("carrier_gain", "carrier_divisor", "gain", "divisor", "low", "high", "pad_low",
                   "pad_high")  # fmt: skip
        return {
            **shared, **dict.fromkeys(numbers, plane), "amplitudes": of("batch", 160),
            "strengths": of("batch", 16, 16),
        }  # fmt: skip
    names = ("polarity", "step", "softness", "crest", "most_rms", "local_rms")
    return {
        **shared, **dict.fromkeys(names, row), "low": plane, "high": plane,
        "words": of("batch", 160), "soft": of("batch", 160),
        "strengths": of("batch", 16, 16), "small": of("batch", 128, 128),
        "display": of("batch", "side", "side"), "shrink_rows": of(128, "side"),
        "shrink_columns": of("side", 128),
    }  # fmt: skip


_PLACES = ("carrier_rows", "carrier_columns", "grid_rows", "grid_columns")


def _places(engine: RobustEngine, rows: int, columns: int) -> Mapping[str, Int32]:
    pairs = ((engine.side, rows), (engine.side, columns), (engine.grid, rows),
             (engine.grid, columns))  # fmt: skip
    return {name: places(*pair) for name, pair in zip(_PLACES, pairs, strict=True)}


@lru_cache(maxsize=64)
def places(source: int, target: int) -> Int32:
    """Return between which two of `source` samples each target sample lies, and where.

    The rule of `watermark.synthesis`, ``(3, target)``: left, right, weight of the right in 64ths.
    """
    centre = (2 * np.arange(target, dtype=np.int64) + 1) * source * 64 // target - 64
    left, part = np.divmod(np.clip(centre, 0, (source - 1) * 128), 128)
    right = np.minimum(left + 1, source - 1)
    return np.stack([left, right, (part + 1) // 2]).astype(np.int32)


@lru_cache(maxsize=64)
def shrink(length: int, side: int, shortest: int) -> Float32:
    """Return what resamples `length` samples to `side` as the networks' input is, as a matrix."""
    how = cv2.INTER_AREA if shortest >= side else cv2.INTER_LINEAR
    unit = np.eye(length, dtype=np.float32)
    return np.asarray(cv2.resize(unit, (length, side), interpolation=how), np.float32)


@lru_cache(maxsize=64)
def blurs(side: int, sigmas: tuple[float, float] | None) -> tuple[Float32, Float32]:
    """Return Gaussian blurs of rows, from the left, and of columns, from the right, as matrices."""
    unit = np.eye(side, dtype=np.float32)
    if sigmas is None:
        return unit, unit
    columns, rows = (
        np.asarray(cv2.GaussianBlur(unit, (1, 0), 1e-6, sigmaY=sigma), np.float32)
        for sigma in sigmas
    )
    return rows, np.ascontiguousarray(columns.T)


def _opened(file: str, where: Path | None, provider: str | None) -> ort.InferenceSession:
    path = _checked(file, where)
    if provider is None:
        return open_session(path)
    from dicom_node.inference.onnx_cuda import open_on

    return open_on(path, provider)


def _checked(file: str, where: Path | None) -> Path:
    at = (where or folder()) / "device"
    try:
        files = tomllib.loads((at / "card.toml").read_text("utf-8"))["files"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise EngineError(f"{at / 'card.toml'}: unreadable or incomplete: {error}") from error
    return file_as_on_card(at, file, files)


def _column(values: Float32) -> Float32:
    return values.astype(np.float32)[:, None]


def _plane(values: Int32) -> Int32:
    return values.astype(np.int32)[:, None, None]
