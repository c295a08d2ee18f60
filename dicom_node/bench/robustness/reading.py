"""Reading attacked pictures: with the pose known, blind, with other keys, and where nothing is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks import PLAIN
from dicom_node.bench.attacks.base import Attack, Picture
from dicom_node.bench.pictures import display_values
from dicom_node.inference import RobustEngine
from dicom_node.keys import KeySet
from dicom_node.watermark import closely, detecting, partial, quality, reading, robust, synchronise
from dicom_node.watermark.expecting import Told

Float32 = NDArray[np.float32]
Found = Literal["", "upright", "pose", "search"]

_UPRIGHT = robust.Pose()


@dataclass(frozen=True)
class Attacked:
    """A picture after an attack, and the same laid back over the frame by who knows the pose.

    `foreign`: it is read with other keys, too, which must read nothing.
    """

    attack: Attack
    picture: Picture
    upright: Picture
    foreign: bool = True


@dataclass(frozen=True)
class Reading:
    """What was read of one attacked picture.

    Attributes
    ----------
    attack
        Name.
    bit_accuracy
        Share of the code bits that were right with the pose known; None without a mark.
    known
        Whether the message was recovered with the pose known.
    found
        How the message was recovered blind: as the picture lies, in one of the seven other
        flips and quarter turns, by the search; "" where it was not.
    change_db
        PSNR of the attacked picture, laid back, against the picture before; None where sizes
        differ, infinite where nothing changed.
    search_s
        CPU seconds of the search; None where there was none.
    untouched_s
        CPU seconds of reading the plain export of a marked frame, as `verify` does; else None.
    """

    attack: str
    bit_accuracy: float | None
    known: bool
    found: Found
    change_db: float | None
    search_s: float | None = None
    untouched_s: float | None = None

    @property
    def recovered(self) -> bool:
        """Whether the message was recovered blind."""
        return self.found != ""


@dataclass
class Strangers:
    """Decodes where no message of ours may be found, and what was found all the same.

    Attributes
    ----------
    unmarked, wrong_key, searches
        Decodes of pictures without a mark, of marked ones with other keys, and searches of
        unmarked pictures.
    accepted
        Valid tags among all these.
    wrong_message
        Valid tags on marked pictures, over another message than the frame's.
    """

    unmarked: int = 0
    wrong_key: int = 0
    searches: int = 0
    accepted: int = 0
    wrong_message: int = 0

    def add(self, other: Strangers) -> None:
        """Count another's decodes as well."""
        self.unmarked += other.unmarked
        self.wrong_key += other.wrong_key
        self.searches += other.searches
        self.accepted += other.accepted
        self.wrong_message += other.wrong_message

    @property
    def decodes(self) -> int:
        """All decodes."""
        return self.unmarked + self.wrong_key + self.searches


@dataclass(frozen=True)
class _Look:
    """Soft bits of D1 and R2, ``(code_bits,)``, and the picture, ``(side, side)``.

    `ways`: in how many the code word may be whitened. 1 where it is not folded.
    """

    soft: Float32
    again: Float32
    frame: Float32
    ways: int

    def read(self, key: KeySet) -> robust.Detection:
        found = reading.read(self.soft, [key], _UPRIGHT, ways=self.ways)
        if found.decoded:
            return found
        found = closely.read_weak(self.again, self.frame, [key], _UPRIGHT, ways=self.ways)
        for told in self._parts:
            if not found.decoded:
                found = closely.read_in_part(self.again, told, [key], _UPRIGHT)
        return found

    @cached_property
    def _parts(self) -> tuple[Told, ...]:
        """What a border or a cover leaves of the frame tells: the same for every key."""
        return tuple(partial.parts(self.frame)) if self.ways == 1 else ()


class Reader:
    """Reads attacked pictures with one engine.

    Parameters
    ----------
    keys, strangers
        Ours, and those that must read nothing.
    search_s
        Budget of the search for a pose, seconds; 0 for none.
    """

    def __init__(
        self, engine: RobustEngine, profile: str, keys: KeySet, strangers: Sequence[KeySet], *,
        search_s: float,
    ) -> None:  # fmt: skip
        self._engine = engine
        self.robust = robust.RobustWatermark(engine, profile)
        self._keys, self._strangers = keys, strangers
        self._search_s = search_s
        self.counted = Strangers()

    def read(self, message: str, before: Picture, items: Sequence[Attacked]) -> list[Reading]:
        """Read the attacked pictures of one frame.

        Parameters
        ----------
        message
            What is in it, hex; "" for a frame without a mark, of which nothing is recovered.
        before
            The plain export.
        """
        word, folds = None, 1
        if message:
            coded, shown = bytes.fromhex(message), display_values(before)
            word, folds = self.robust.word_in(shown, coded, self._keys)
        upright = [self._look(item.upright, folds) for item in items]
        looks = [
            known if item.picture is item.upright else self._look(item.picture, folds)
            for item, known in zip(items, upright, strict=True)
        ]
        readings = []
        for item, known, blind in zip(items, upright, looks, strict=True):
            if item.foreign:
                self._count(self._foreign(blind), "wrong_key", len(self._strangers))
            change = _change_db(before, item.upright)
            if word is None:
                self._count(self._ours(blind) is not None, "unmarked", 1)
                readings.append(Reading(item.attack.name, None, False, "", change))
                continue
            accuracy = float(np.mean((known.soft > 0) == (word > 0)))
            found, seconds = self._blind(item, blind, message)
            told = self._ours(known) == message
            untouched = self._timed(item.picture) if item.attack.name == PLAIN else None
            readings.append(
                Reading(item.attack.name, accuracy, told, found, change, seconds, untouched)
            )
        return readings

    def read_unmarked(self, pictures: Sequence[Picture]) -> None:
        """Read pictures that carry no mark, with our key and the others."""
        for picture in pictures:
            look = self._look(picture, detecting.folds_of(display_values(picture))[0])
            self._count(self._ours(look) is not None, "unmarked", 1)
            self._count(self._foreign(look), "unmarked", len(self._strangers))

    def search_unmarked(self, picture: Picture) -> None:
        """Search a picture that carries no mark for one."""
        if self._search_s > 0:
            self._count(self._search(picture).decoded, "searches", 1)

    def decode(self, picture: Picture) -> robust.Detection:
        """Read one picture with our key, in all eight poses and all ways."""
        return self.robust.detect(
            display_values(picture), [self._keys], dihedral=True, weak=True
        )

    def _blind(self, item: Attacked, look: _Look, message: str) -> tuple[Found, float | None]:
        first = self._ours(look)
        if first is not None:
            return self._expect(first, message, "upright"), None
        turned = self.decode(item.picture)
        if turned.decoded:
            how: Found = "upright" if turned.pose == _UPRIGHT else "pose"
            return self._expect(turned.message.hex(), message, how), None
        if not item.attack.searched or self._search_s <= 0:
            return "", None
        before = time.process_time()
        searched = self._search(item.picture)
        spent = time.process_time() - before
        if not searched.decoded:
            return "", spent
        return self._expect(searched.message.hex(), message, "search"), spent

    def _timed(self, picture: Picture) -> float:
        """Return the CPU seconds of reading a picture once, from its pixels on."""
        before = time.process_time()
        self.decode(picture)
        return time.process_time() - before

    def _expect(self, read: str, message: str, how: Found) -> Found:
        """Return how it was found if it is the message; a valid tag over another one counts."""
        if read == message:
            return how
        self.counted.wrong_message += 1
        return ""

    def _search(self, picture: Picture) -> robust.Detection:
        return synchronise.find(
            display_values(picture), self._engine, [self._keys], budget_s=self._search_s
        )

    def _look(self, picture: Picture, folds: int = 1) -> _Look:
        """Return what both networks see in a picture of any size."""
        shown = display_values(picture)
        frame = self.robust.resample(shown, self.robust.second_side)
        return _Look(
            self.robust.look(shown, folds)[0], self.robust.look_closely(shown, folds)[0], frame,
            detecting.ways_of(folds),
        )

    def _ours(self, look: _Look) -> str | None:
        """Return the message our key reads, hex; None where it reads none."""
        found = look.read(self._keys)
        return found.message.hex() if found.decoded else None

    def _foreign(self, look: _Look) -> int:
        """Return how many of the other keys read something."""
        return sum(look.read(key).decoded for key in self._strangers)

    def _count(self, accepted: int, what: Literal["unmarked", "wrong_key", "searches"],
               decodes: int) -> None:  # fmt: skip
        setattr(self.counted, what, getattr(self.counted, what) + decodes)
        self.counted.accepted += int(accepted)


def _change_db(before: Picture, after: Picture) -> float | None:
    if before.shape != after.shape:
        return None
    return quality.psnr_db(display_values(before), display_values(after))


