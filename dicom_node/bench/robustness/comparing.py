"""The same attacks on the same frames, marked by others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Attack
from dicom_node.bench.robustness.peers import BITS, Bits, Coloured, Peer
from dicom_node.bench.robustness.subjects import Subject
from dicom_node.watermark import quality

# Of the suite: what every row of the papers' tables comes down to, once.
COMPARED = (
    "plain 8-bit export", "JPEG 90", "JPEG 70", "JPEG 50", "JPEG 30", "JPEG 10", "WebP 80",
    "Gaussian noise 0.001", "Gaussian noise 0.005", "Gaussian noise 0.01", "salt and pepper 0.01",
    "speckle 0.01", "blur 7 x 7", "mean 3 x 3", "median 3 x 3", "gamma 0.5", "hist. equalised",
    "brightness +50", "contrast x 1.5", "half size", "scaled x 2", "rotated 5", "rotated 90",
    "flip horiz.", "blackened 10%", "blackened 25%", "cropped 10%, corner kept", "screenshot",
)  # fmt: skip
# invisible-watermark refuses fewer pixels; RivaGAN takes a minute a frame for more.
LEAST_PX, MOST_PX = 256 * 256, 512 * 512


@dataclass(frozen=True)
class PeerReading:
    """What a peer read of one attacked picture.

    Attributes
    ----------
    bit_accuracy
        With the pose known and the size restored; None where the peer fails on the picture.
    recovered
        Whether all 32 bits were right of the picture as it lay.
    """

    bit_accuracy: float | None
    recovered: bool


@dataclass(frozen=True)
class PeerResult:
    """One frame marked by one peer: how visible, and what was read by attack."""

    peer: str
    path: str
    modality: str
    frame: int
    psnr_db: float
    ssim: float
    readings: dict[str, PeerReading]


def comparable(subject: Subject) -> bool:
    """Return whether the peers can mark a frame, in bearable time."""
    return LEAST_PX <= subject.pixels <= MOST_PX


def compare(
    subject: Subject, peers: Sequence[Peer], attacks: Sequence[Attack]
) -> list[PeerResult]:
    """Mark one cover with every peer and attack what each made of it."""
    cover = subject.pair().cover
    rng = np.random.default_rng(zlib.crc32(subject.identity.encode("utf-8")))
    bits: Bits = rng.integers(0, 2, BITS, np.uint8)
    chosen = [a for a in attacks if a.name in COMPARED]
    results = []
    for peer in peers:
        marked = peer.mark(cover, bits)
        before = np.repeat(cover[..., None], 3, axis=2)
        similar = [quality.ssim(_shown(before[..., c]), _shown(marked[..., c])) for c in range(3)]
        results.append(PeerResult(
            peer.name, subject.path, subject.modality, subject.frame,
            quality.psnr_db(_shown(before), _shown(marked)), float(np.mean(similar)),
            {a.name: _reading(peer, a, marked, bits, subject.identity) for a in chosen},
        ))  # fmt: skip
    return results


def _reading(
    peer: Peer, attack: Attack, marked: Coloured, bits: Bits, identity: str
) -> PeerReading:
    shape = marked.shape[:2]
    channels = [np.ascontiguousarray(marked[..., c]) for c in range(3)]
    attacked = [attack.apply(channel, attack.rng(identity)) for channel in channels]
    upright = [attack.upright(a, shape, attack.rng(identity)) for a in attacked]
    blind = peer.read(np.dstack(attacked))
    recovered = blind is not None and bool(np.array_equal(blind, bits))
    moved = any(a is not b for a, b in zip(attacked, upright, strict=True))
    if not moved and upright[0].shape == shape:
        known = blind
    else:
        known = peer.read(np.dstack([_at_size(channel, shape) for channel in upright]))
    accuracy = None if known is None else float(np.mean(known == bits))
    return PeerReading(accuracy, recovered)


def _at_size(channel: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if channel.shape == shape:
        return channel
    how = cv2.INTER_AREA if channel.shape[0] > shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(channel, shape[::-1], interpolation=how), np.uint8)


def _shown(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(picture * np.float32(1 / 255), np.float32)
