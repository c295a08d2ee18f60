"""A key for tests of W1 alone."""

from __future__ import annotations


class Key:
    """A key set with nothing but what W1 needs."""

    def __init__(self, secret: bytes, owner: str = "GENERAL-HOSPITAL") -> None:
        self.robust_key, self.owner, self.key_id = secret * 32, owner, secret * 8
