"""How rarely chance agrees with given soft bits as much as a code word does.

Soft bits made without the key are whatever they are; the signs of a keyed word are uniform and
independent of them. Their inner product then exceeds a sum `T` with a probability of at most

* ``3.18 P(N(0, 1) > T / |soft|)``, whatever the soft bits (Bentkus and Dzindzalieta), and
* ``exp(-(x T - sum_k log cosh(x soft_k)))`` for any one x (Chernoff), for these soft bits.

Where both fall a little short of what is asked, the probability itself is counted, sum by sum, over
soft bits rounded so that it cannot come out too small (5 ms, and never without a mark).
Nothing here is an estimate: a word that is said to pass once in 2**32 attempts passes at most so
often.

References
----------
Bentkus and Dzindzalieta, "A tight Gaussian bound for weighted sums of Rademacher random
variables", Bernoulli 21(2), 2015. Chernoff, "A measure of asymptotic efficiency for tests of a
hypothesis based on the sum of observations", Annals of Mathematical Statistics 23(4), 1952.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_GAUSSIAN = math.log(3.18 / math.sqrt(2 * math.pi))  # P(N(0, 1) > t) < exp(-t t / 2) / (t sqrt 2pi)
_LEAST_T = 2.0  # nothing is asked below: there the bounds say little
_TRIED = np.geomspace(0.15, 6.0, 40)  # x, where the mean square of the soft bits is 1
# Counting gains at most so many nats over the bounds; soft bits are rounded so finely that a sum is
# off by no more than this share of its standard deviation.
_SHORT, _OFF = 3.0, 0.02
_SINGLE = 1e-5  # error of a sum of single precision, as a share of the sum of all sizes
_FIRST, _FALLS = 0.5, 1.3  # how likely guesses are to be right, by their rank, see `asked`


def nats(soft: Float32, sums: Float32) -> Float64:
    """Return how surprising it is that soft bits sum to so much, the shape of `sums`.

    Minus the logarithm of the bound on its probability; 0 for what is no surprise.

    Parameters
    ----------
    soft
        ``(places,)``.
    sums
        Inner products of the soft bits with words of -1 and +1.
    """
    size = float(np.linalg.norm(soft)) or 1.0
    t = np.maximum(_at_least(soft, sums) / size, 0.0)
    surprise = np.zeros(t.shape)
    far = t > _LEAST_T
    surprise[far] = np.maximum(_gaussian(t[far]), _chernoff(soft / size, t[far]))
    return surprise


def over(soft: Float32, sums: Float32, least: Float64) -> Float64:
    """Return by how many nats sums are more surprising than is asked; negative where less.

    Parameters
    ----------
    soft, sums
        As `nats` takes them.
    least
        Nats asked of each, the shape of `sums`.
    """
    found: Float64 = nats(soft, sums) - least
    near = found > -_SHORT
    if near.any() and found.max() < 0:
        found[near] = np.maximum(found[near], counted(soft, sums[near]) - least[near])
    return found


def counted(soft: Float32, sums: Float32) -> Float64:
    """Return `nats` of the probability itself, a little less at most for the rounding."""
    sizes = np.abs(soft.astype(np.float64))
    deviation = float(np.linalg.norm(sizes)) or 1.0
    step = 4 * _OFF * deviation / len(soft)  # rounding moves each by a quarter of it on average
    whole = np.rint(sizes / step).astype(np.int64)
    off = float(np.abs(sizes - step * whole).sum())
    most = int(whole.sum())
    chances = np.zeros(2 * most + 1)  # of every sum from -most to most
    chances[most] = 1.0
    reach = 0
    for size in whole[whole > 0]:
        before = chances[most - reach : most + reach + 1] / 2
        chances[most - reach : most + reach + 1] = 0
        chances[most - reach - size : most + reach - size + 1] += before
        chances[most - reach + size : most + reach + size + 1] += before
        reach += int(size)
    tails = np.cumsum(chances[::-1])[::-1]
    places = np.ceil((_at_least(soft, sums) - off) / step).astype(np.int64) + most
    found: Float64 = -np.log(np.maximum(tails[np.clip(places, 0, 2 * most)], 1e-300))
    return found


def _at_least(soft: Float32, sums: Float32) -> Float64:
    """Return what sums are at least, which were added up in single precision."""
    found: Float64 = sums.astype(np.float64) - _SINGLE * float(np.abs(soft).sum())
    return found


def _gaussian(t: Float64) -> Float64:
    found: Float64 = t * t / 2 + np.log(t) - _GAUSSIAN
    return found


def _chernoff(soft: Float32, t: Float64) -> Float64:
    """Return the best of the tangents to the convex bound, for soft bits of norm 1."""
    tried = _TRIED * math.sqrt(len(soft))
    x = np.abs(np.outer(tried, soft).astype(np.float64))
    costs = (x + np.log1p(np.exp(-2 * x)) - math.log(2)).sum(axis=1)  # log cosh, without overflow
    # Convex in t: the best x grows with it, and lies where costs grow as fast.
    at = np.searchsorted(np.diff(costs) / np.diff(tried), t)
    found: Float64 = tried[at] * t - costs[at]
    return found


@lru_cache(maxsize=32)
def asked(guesses: int, rarity_bits: float) -> Float64:
    """Return the nats asked of each of so many guesses, the likeliest first, ``(guesses,)``.

    The chance of all false accepts, ``2**-rarity_bits``, is shared out as guesses are likely to be
    right, ``(rank + 0.5)**-1.3``. Of marks that were just so recognised or just not, 54 % have the
    first, 22 % one of the next nine, 8 % of the next ninety, 6 % one of the rest.
    """
    shares = (np.arange(guesses) + _FIRST) ** -_FALLS
    least: Float64 = rarity_bits * math.log(2) - np.log(shares / shares.sum())
    least.setflags(write=False)
    return least
