from dicom_node.dimse.contexts import LOSSLESS_FALLBACKS, MAX_CONTEXTS, proposed_contexts

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
J2K, JLS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"


def pairs_of(contexts):
    assert all(len(context.transfer_syntax) == 1 for context in contexts)
    return [(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in contexts]


def test_each_pair_gets_its_own_context_once():
    assert pairs_of(proposed_contexts([(CT, J2K), (MR, JLS), (CT, J2K), (CT, JLS)])) == [
        (CT, J2K), (MR, JLS), (CT, JLS)
    ]  # fmt: skip


def test_fallbacks_come_after_everything_wanted_and_never_twice():
    pairs = pairs_of(proposed_contexts([(CT, J2K), (MR, JLS)], fallbacks=LOSSLESS_FALLBACKS))
    assert pairs[:2] == [(CT, J2K), (MR, JLS)]
    assert pairs[2:] == [(sop, syntax) for sop in (CT, MR) for syntax in LOSSLESS_FALLBACKS]
    again = pairs_of(proposed_contexts(pairs, fallbacks=LOSSLESS_FALLBACKS))
    assert again == pairs


def test_no_more_contexts_than_an_association_can_have():
    many = [(f"1.2.3.{number}", J2K) for number in range(200)]
    pairs = pairs_of(proposed_contexts(many, fallbacks=LOSSLESS_FALLBACKS))
    assert pairs == many[:MAX_CONTEXTS]
