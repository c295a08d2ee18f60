"""The content fingerprint f: what a frame shows, cell by cell, in a few hundred bytes.

    before ──128 x 128──F──▶ 16 x 16 cells of some bits      signed in W2, kept in the registry
    after ───128 x 128──comparator, with those bits──▶ 16 x 16 scores ──▶ changed cells ──▶ boxes

Export, filters, scaling and another window leave the scores low, a spot painted in or out raises
them where it is. It says *where* after W2 is gone; W2 alone says *that not one pixel* changed.

A fingerprint is ``model[1] form[1]`` and the bits of one cell after the other, rows first: plain
(form 0) or deflated (form 1), whichever is shorter.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError
from dicom_node.inference.base import Float32
from dicom_node.inference.fingerprinter import Fingerprinter
from dicom_node.watermark.box import Box
from dicom_node.watermark.placement import Placement, as_seen, inside
from dicom_node.watermark.robust import Pose

Code = NDArray[np.bool_]  # (bits, cells, cells)
Cells = NDArray[np.bool_]  # (cells, cells)

_PLAIN, _DEFLATED = 0, 1
# Share of bits that differ from which it is another picture, changed throughout. Of 88 frames no
# processing turned over more than 0.18; between frames of the same kind it was 0.3 to 0.4.
_ANOTHER = 0.25
_SEEN_ENOUGH = 0.9  # part of a cell that has to lie in the picture for it to be compared


@dataclass(frozen=True)
class Comparison:
    """A frame against the fingerprint of what it was.

    Attributes
    ----------
    scores
        ``(cells, cells)``, of the comparator; of the frame as it was marked, upright.
    changed
        Cells that were changed.
    compared
        Cells that lie in the picture; those outside were not looked at.
    """

    scores: Float32
    changed: Cells
    compared: Cells

    @property
    def same(self) -> bool:
        """Whether no cell was changed."""
        return not self.changed.any()

    def boxes(self, shape: tuple[int, ...], pose: Pose | None = None) -> tuple[Box, ...]:
        """Return the changed regions, largest first, in pixels of the picture that was compared.

        Parameters
        ----------
        shape
            Rows and columns of that picture.
        pose
            As given to `compare`.
        """
        count, _, stats, _ = cv2.connectedComponentsWithStats(
            self.changed.astype(np.uint8), connectivity=8
        )
        regions = sorted(stats[1:count].tolist(), key=lambda region: -region[cv2.CC_STAT_AREA])
        side, whole = len(self.changed), _placed(shape, pose).matrix()
        found = []
        for left, top, width, height, _area in regions:
            x, y = np.array([left, left + width]) / side, np.array([top, top + height]) / side
            corners = np.array([[a, b, 1.0] for a in x for b in y])
            places = (corners @ whole.T)[:, :2].clip(0, (shape[1], shape[0]))
            low, high = np.floor(places.min(0) + 1e-6), np.ceil(places.max(0) - 1e-6)
            (column, row), (columns, rows) = low.astype(int), (high - low).astype(int)
            found.append(Box(int(row), int(column), int(rows), int(columns)))
        return tuple(found)


def compute(display: Float32, network: Fingerprinter) -> bytes:
    """Return the fingerprint of a frame.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    """
    return pack(network.code(_resampled(display, network.card.side)), network.card.model)


def compare(
    features: bytes, picture: Float32, network: Fingerprinter, pose: Pose | None = None
) -> Comparison:
    """Say where a picture differs from the frame that `features` were computed from.

    Parameters
    ----------
    features
        From `compute`.
    picture
        Display values 0..1, ``(rows, columns)``, as they came.
    pose
        How the frame lies in the picture; None: upright, all of it.

    Raises
    ------
    WatermarkError
        If `features` are damaged, or of networks that this installation does not have.
    """
    card = network.card
    code = unpack(features, card.model, (card.bits, card.cells, card.cells))
    compared = np.ones((card.cells, card.cells), np.bool_)
    if isinstance(pose, Placement):
        part = inside(pose, picture.shape, card.side)
        size = (card.cells, card.cells)
        compared = cv2.resize(part, size, interpolation=cv2.INTER_AREA) >= _SEEN_ENOUGH
    seen = _upright(picture, card.side, pose)
    scores = network.changed(seen, code)
    unlike = (network.code(seen) ^ code)[:, compared]
    if unlike.size and float(unlike.mean()) > _ANOTHER:
        return Comparison(scores, compared, compared)
    return Comparison(scores, changed_cells(scores, compared, card.alarm, card.near), compared)


def nearest(
    several: Sequence[bytes], picture: Float32, network: Fingerprinter, pose: Pose | None = None
) -> list[bytes]:
    """Return fingerprints, those first whose bits are most like the picture's own.

    Raises
    ------
    WatermarkError
        If one is damaged, or of networks that this installation does not have.
    """
    card = network.card
    shape = card.bits, card.cells, card.cells
    own = network.code(_upright(picture, card.side, pose))
    return sorted(
        several, key=lambda features: int((unpack(features, card.model, shape) ^ own).sum())
    )


def changed_cells(scores: Float32, compared: Cells, alarm: float, near: float) -> Cells:
    """Return the cells from `alarm`, and those from `near` that hang together with one of them."""
    candidates = (scores >= near) & compared
    _, regions = cv2.connectedComponents(candidates.astype(np.uint8), connectivity=8)
    sure = np.unique(regions[(scores >= alarm) & candidates])
    found: Cells = np.isin(regions, sure) & candidates
    return found


def pack(code: Code, model: int) -> bytes:
    """Return a code as bytes."""
    plain = np.packbits(code.transpose(1, 2, 0)).tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    small = packer.compress(plain) + packer.flush()
    form, body = (_DEFLATED, small) if len(small) < len(plain) else (_PLAIN, plain)
    return bytes([model, form]) + body


def unpack(features: bytes, model: int, shape: tuple[int, int, int]) -> Code:
    """Return the code that `pack` was given, ``(bits, cells, cells)``.

    Raises
    ------
    WatermarkError
        If the bytes are of another model or damaged.
    """
    if features[:1] != bytes([model]):
        raise WatermarkError(
            f"a fingerprint of {f'model {features[0]}' if features else 'no model'}, this "
            f"installation has model {model}; compare it with the version that marked the frame"
        )
    count = int(np.prod(shape))
    plain = features[2:]
    if features[1:2] == bytes([_DEFLATED]):
        inflate = zlib.decompressobj(-15)
        try:
            plain = inflate.decompress(plain, count // 8 + 2)
        except zlib.error as error:
            raise WatermarkError("the fingerprint is damaged: it does not inflate") from error
    if len(plain) != -(-count // 8) or features[1:2] not in (b"\0", b"\1"):
        raise WatermarkError(f"the fingerprint is damaged: {len(plain)} bytes of {-(-count // 8)}")
    bits, rows, columns = shape
    cells = np.unpackbits(np.frombuffer(plain, np.uint8), count=count).astype(np.bool_)
    return np.ascontiguousarray(cells.reshape(rows, columns, bits).transpose(2, 0, 1))


def distance(a: bytes, b: bytes, model: int, shape: tuple[int, int, int]) -> int:
    """Return how many bits of two fingerprints differ (WatermarkError, see `unpack`)."""
    return int((unpack(a, model, shape) ^ unpack(b, model, shape)).sum())


def _placed(shape: tuple[int, ...], pose: Pose | None) -> Placement:
    """Return where the frame lies in a picture of `shape`."""
    if isinstance(pose, Placement):
        return pose
    quarter = 0 if pose is None else round(pose.rotation_deg / 90) % 4
    return Placement.whole(shape, quarter, flip=pose is not None and pose.flip)


def _upright(picture: Float32, side: int, pose: Pose | None) -> Float32:
    """Return the frame in a picture as the networks see it, ``(side, side)``."""
    if isinstance(pose, Placement):
        return as_seen(picture, pose, side)
    return _resampled(picture if pose is None else pose.upright(picture), side)


def _resampled(display: Float32, side: int) -> Float32:
    """Return a frame as the networks see it, ``(side, side)``."""
    how = cv2.INTER_AREA if min(display.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(display, (side, side), interpolation=how), np.float32)
