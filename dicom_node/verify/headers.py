"""Headers that are not what was signed, or that nobody vouches for: counted and named.

A verdict speaks of pixels. What happened to the header stands beside it and is never silent, also
where it is a name that an archive has rightly corrected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicom_node.verify.verdict import InstanceVerdict

UNSEALED = ("absent", "invalid")
_MOST_INSTANCES = 20
_MOST_ATTRIBUTES = 10


@dataclass
class Headers:
    """What was found of the headers of some instances.

    Attributes
    ----------
    changed
        Instances of which an attribute is not what was signed.
    unsealed
        Instances of authentic pixels under a header whose seal is gone, broken or not ours.
    attributes
        Of how many instances each attribute was changed.
    instances
        The first 20 of them, as JSON values.
    """

    changed: int = 0
    unsealed: int = 0
    attributes: Counter[str] = field(default_factory=Counter)
    instances: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.unsealed)

    def take(
        self, sop_instance_uid: str, verdict: str, changed: Iterable[str], header_seal: str
    ) -> None:
        """Take in one instance; nothing happens if its header is as it was signed."""
        names = list(changed)
        unsealed = is_unsealed(verdict, header_seal)
        if not names and not unsealed:
            return
        self.changed += bool(names)
        self.unsealed += unsealed
        self.attributes.update(names)
        if len(self.instances) < _MOST_INSTANCES:
            self.instances.append({
                "sop_instance_uid": sop_instance_uid, "changed": names,
                "header_seal": header_seal or None,
            })  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return it as ``audit --json`` and the details of C-FIND have it."""
        return {
            "changed": self.changed, "unsealed": self.unsealed,
            "attributes": dict(sorted(self.attributes.items())), "instances": self.instances,
        }  # fmt: skip

    def to_log(self) -> dict[str, Any]:
        """Return the fields of a log line; {} if there is nothing to say."""
        said: dict[str, Any] = {}
        if self.changed:
            said |= {"headers_changed": self.changed, "attributes": self.named}
        return said | ({"headers_unsealed": self.unsealed} if self.unsealed else {})

    @property
    def named(self) -> str:
        """The changed attributes, the rarest first: one side is not lost among many names."""
        ordered = sorted(self.attributes, key=lambda name: (self.attributes[name], name))
        more = len(ordered) - _MOST_ATTRIBUTES
        return ", ".join(ordered[:_MOST_ATTRIBUTES]) + (f" and {more} more" if more > 0 else "")


def is_unsealed(verdict: str, header_seal: str) -> bool:
    """Whether pixels are vouched for and their header is not."""
    return verdict == "authentic" and header_seal in UNSEALED


def headers_of(verdicts: Iterable[InstanceVerdict]) -> Headers:
    """Return what was found of the headers of these instances."""
    found = Headers()
    for each in verdicts:
        found.take(each.sop_instance_uid, each.verdict, each.changed, each.header_seal)
    return found
