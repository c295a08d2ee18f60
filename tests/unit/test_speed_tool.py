"""What says that memory is flat must be able to say that it is not."""

import pytest
from verify_speed import growth_mib, is_flat


@pytest.mark.parametrize("instances", [2_000, 20_000])
@pytest.mark.parametrize(("leak_kib", "flat"), [(0, True), (0.5, True), (32, False)])
def test_a_leak_is_told_from_caches_that_fill(instances, leak_kib, flat):
    steps = instances // 250
    warm = [600 + 80 * min(1, 10 * n / steps) for n in range(steps)]
    seen = [base + leak_kib * 250 * n / 1024 for n, base in enumerate(warm)]
    assert is_flat(seen, instances) is flat


def test_growth_is_told_between_the_second_tenth_and_the_last():
    assert growth_mib([0, *range(100, 119)]) == pytest.approx(16)
