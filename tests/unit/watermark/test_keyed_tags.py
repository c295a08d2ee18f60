"""The tags of many hashes at once are the tags of each, and their code words are ecc's."""

from __future__ import annotations

import numpy as np
import pytest
from Crypto.Hash import KMAC256
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.watermark import ecc
from dicom_node.watermark.keyed_tags import CUSTOM, KeyedTags, scores

OWNERS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=32)


@given(
    key=st.binary(min_size=32, max_size=32), owner=OWNERS,
    hashed=st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=5),
)  # fmt: skip
@settings(max_examples=40)
def test_every_tag_is_what_kmac_makes_of_the_hash(
    key: bytes, owner: str, hashed: list[bytes]
) -> None:
    rows = np.frombuffer(b"".join(hashed), np.uint8).reshape(-1, 8)
    messages = KeyedTags(key, owner).messages(rows)
    for row, each in zip(messages, hashed, strict=True):
        mac = KMAC256.new(key=key, mac_len=8, custom=CUSTOM).update(each + owner.encode("ascii"))
        assert row.tobytes() == each + mac.digest()[:4]


@pytest.mark.parametrize("length", [8, 20, 24])
def test_longer_macs_for_another_purpose_are_kmac_s_too(length: int) -> None:
    hashed, key = bytes(range(8)), bytes(range(32))
    rows = np.frombuffer(hashed, np.uint8)[None]
    found = KeyedTags(key, "OWNER", b"another purpose", length).macs(rows)
    mac = KMAC256.new(key=key, mac_len=length, custom=b"another purpose").update(hashed + b"OWNER")
    assert found[0].tobytes() == mac.digest()


@given(message=st.binary(min_size=12, max_size=12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_score_is_the_product_with_the_code_word(message: bytes, seed: int) -> None:
    soft = np.random.default_rng(seed).normal(size=ecc.CODE_BITS).astype(np.float32)
    word = 2.0 * ecc.encode(message) - 1.0
    found = scores(np.frombuffer(message, np.uint8)[None], soft)
    assert found[0, 0] == pytest.approx(float(soft @ word), abs=1e-3)
    assert found[1, 0] == pytest.approx(float(soft[64:] @ word[64:]), abs=1e-3)


def test_an_owner_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="126 bytes"):
        KeyedTags(bytes(32), "x" * 126)
