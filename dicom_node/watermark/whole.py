"""What W2 says of a frame; the verdict on one that is vouched for as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from dicom_node.keys import KeyRing
from dicom_node.watermark import noted, payload
from dicom_node.watermark.box import Box
from dicom_node.watermark.framing import KnownDigest, Side, frame_digest, frame_key
from dicom_node.watermark.payload import OpenedRecord, Parsed, Profile
from dicom_node.watermark.tiles import Bounds, Frame

Status = Literal["valid", "partial", "absent"]


@dataclass(frozen=True)
class IntegrityCheck:
    """What W2 says about one frame.

    Attributes
    ----------
    status
        "valid": every tile and the signature hold, for the frame that was asked about. "partial":
        ours, but not all of that. "absent": nothing of ours was found.
    signature_valid
        The signature is ours, over the record and over the whole frame as recovered.
    record
        What the frame says, or None; only ever what tile digests or a signature vouch for.
    recovered
        ``(rows, columns)`` int32 I1, exact if `status` is valid. Tiles that do not hold are
        as they were received.
    tampered
        The tiles that do not hold. Empty without the MAC key, or if nothing was found.
    bound
        False: the marks belong to another SOP Instance UID or frame number than was asked; `record`
        says which frame. Meaningful where `record` is not None or a tile held.
    record_authentic
        The record is ours, even if pixels changed since.
    """

    status: Status
    signature_valid: bool
    record: OpenedRecord | None
    recovered: Frame
    tampered: tuple[Box, ...]
    profile: Profile | None
    tile_px: int
    bound: bool
    record_authentic: bool = False


@dataclass
class WholeFrame:
    """A frame of one digest, vouched for as a whole or not at all."""

    host: Frame
    side: Side | None
    bounds: Bounds
    ring: KeyRing
    asked: tuple[bytes, int]
    header_block: bytes
    known: KnownDigest | None

    def of_lowest_bits(self) -> IntegrityCheck | None:
        """Judge a frame whose digest stands in lowest bits; None where there is nothing of ours."""
        try:
            found = payload.parse_noted(self.header_block)
        except ValueError:
            found = None
        if found is None and self.header_block:
            return None
        apart = noted.take_apart(self.host, self.bounds)
        if apart is None:
            return None
        parsed, recovered = (found[0], apart.restored(found[1])) if found else (None, self.host)

        def holds(key: bytes) -> bool:
            return noted.digest_of(apart.cleared, self.side, key) == apart.digest

        return self.judged("noted", recovered, parsed, holds)

    def judged(
        self, profile: Profile, recovered: Frame, parsed: Parsed | None,
        holds: Callable[[bytes], bool],
    ) -> IntegrityCheck | None:  # fmt: skip
        """Return what the digest and the record of the header block say together.

        Parameters
        ----------
        parsed
            The record; None without its block.
        holds
            Whether the digest in the pixels is theirs under a key of `framing.frame_key`.
        """
        claims = [(keys, self.asked) for keys in self.ring.all()]
        own = self.ring.get(parsed.key_id) if parsed is not None else None
        if parsed is not None and own is not None:
            claims.append((own, (parsed.uid_tag, parsed.frame_number)))
        held = next(
            (said for keys, said in claims
             if keys.has_secrets and holds(frame_key(keys.mac_key, *said))), None,
        )  # fmt: skip
        signed = (
            parsed is not None and own is not None and parsed.authentic(own, self.digest(recovered))
        )
        record = parsed.open(own) if signed and parsed is not None and own is not None else None
        if held is None and not signed:
            if own is None:
                return None
            # A block of ours in the header, and other pixels than it was signed for.
            box = Box(0, 0, *self.host.shape)
            return IntegrityCheck("partial", False, None, self.host, (box,), profile, 0,
                                  bound=claims[-1][1] == self.asked)  # fmt: skip
        said = held if held is not None else self.asked
        if record is not None:
            said = (record.uid_tag, record.frame_number)
        bound = said == self.asked
        secret = own is not None and own.has_secrets
        # Without the block the digest still vouches for the pixels, but there is no signature.
        whole = signed and bound and (held is not None or not secret)
        base = IntegrityCheck("partial", signed, record, recovered, (), profile, 0, bound, signed)
        return replace(base, status="valid") if whole else base

    def digest(self, recovered: Frame) -> bytes:
        """Return the digest of a recovered frame."""
        known = self.known.of(recovered, self.side) if self.known is not None else None
        return known or frame_digest(recovered, self.side)
