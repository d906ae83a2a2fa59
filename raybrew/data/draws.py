"""Random draws that are the same with every release of numpy.

numpy promises the raw output of its bit generators for all time, but not what `Generator` makes of it. What is drawn
here decides the order of training, which a resumed run must see again, so it is made of raw output.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Shuffler", "uniform"]

#: Raw numbers that are drawn together.
_AT_ONCE = 1024


def uniform(seeds: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1), as a function of `seeds`."""
    return (np.random.PCG64(list(seeds)).random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Shuffler:
    """Permutations, one after the other, as a function of `seeds`.

    They are those of `np.random.Generator(PCG64(seeds)).permutation` in numpy 1.17 to 2.4. numpy makes them while it
    still does; the same is written out below for the day when it does not, and takes much longer.
    """

    def __init__(self, seeds: Sequence[int], by_numpy: bool | None = None) -> None:
        self._bits = np.random.PCG64(list(seeds))
        self._by_numpy = _numpy_agrees() if by_numpy is None else by_numpy
        self._numbers = self._halves()

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """The numbers from 0 to `count` - 1, each once."""
        if self._by_numpy or count > 2**32:
            return np.random.Generator(self._bits).permutation(count)
        found = list(range(count))
        for place in range(count - 1, 0, -1):
            mask = (1 << place.bit_length()) - 1
            while (drawn := next(self._numbers) & mask) > place:
                pass
            found[place], found[drawn] = found[drawn], found[place]
        return np.array(found, np.int64)

    def _halves(self) -> Iterator[int]:
        """Numbers of 32 bits: the low half of each raw one, then its high half."""
        while True:
            for raw in self._bits.random_raw(_AT_ONCE).tolist():
                yield raw & 0xFFFFFFFF
                yield raw >> 32


@functools.cache
def _numpy_agrees() -> bool:
    """Whether this numpy still permutes as the code above, by permutations of several sizes in a row."""
    sizes = (1, 2, 7, 1000, 70_001, 5)
    ours, theirs = Shuffler([5, 3], by_numpy=False), Shuffler([5, 3], by_numpy=True)
    return all(np.array_equal(ours.permutation(size), theirs.permutation(size)) for size in sizes)
