"""How often each element of an array is written, without an array of that size.

A digit is (axis of the array, stride, how many there are): the place along an axis is
the sum of its digits by their strides. A factor counts how often each combination of
some digits occurs, from the first on that does. A term is a product of factors: each
combination of one of them occurs with all those of the others.

>>> rows, columns = {0: np.arange(3) * 4}, {0: np.arange(4)}
>>> [of for of in term((12,), [0], [rows, columns], 1)]
[((0, 1, 12),)]
"""

import collections
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

_MOST = 2**27  # elements of an array that is written out

Digit = tuple[int, int, int]
Factor = tuple[int, np.ndarray]
Term = dict[tuple[Digit, ...], Factor]


def term(
    shape: Sequence[int],
    constants: Sequence[int],
    groups: list[dict[int, np.ndarray]],
    times: int,
) -> Term:
    """What one store writes.

    Args:
      shape: of the array.
      constants: along each axis, added to the places.
      groups: of independent places, along each axis that they have some of.
      times: how often each place is written for reasons that are none of the groups.
    """
    digits: list[list[tuple[int, int, int, int, np.ndarray]]]
    merged = True
    while merged:
        merged, digits = False, [[] for _ in groups]
        for axis, size in enumerate(shape):
            own = [g for g, group in enumerate(groups) if axis in group]
            least = {g: int(groups[g][axis].min()) for g in own}
            rest = constants[axis] + sum(least.values())
            values = {g: groups[g][axis] - least[g] for g in own}
            own.sort(key=lambda g: int(values[g].max()))
            strides = [1]
            for k in range(1, len(own)):
                strides.append(math.gcd(*(_divisor(values[g]) for g in own[k:])) or 1)
            for k, g in enumerate(own):
                last = k + 1 == len(own)
                many = -(-size // strides[k]) if last else strides[k + 1] // strides[k]
                shift = rest // strides[k] % many
                place = values[g] // strides[k] + shift
                if not last and int(place.max()) >= many:
                    groups = _together(groups, g, own[k + 1])
                    merged = True
                    break
                digits[g].append((axis, strides[k], many, shift, place))
            if merged:
                break
    product: Term = {}
    for found in digits:
        found.sort(key=lambda digit: digit[:2])
        lengths = [many for _, _, many, _, _ in found]
        place = np.ravel_multi_index([place for *_, place in found], lengths)
        start = int(place.min())
        counts = np.bincount(place - start)
        product[tuple(digit[:3] for digit in found)] = _factor(start, counts)
    for axis, size in enumerate(shape):
        if not any(axis in group for group in groups):
            product[((axis, 1, size),)] = _factor(constants[axis], np.ones(1, np.int64))
    if times != 1:
        first = next(iter(product))
        start, counts = product[first]
        product[first] = _factor(start, counts * times)
    return _collapsed(product, shape)


def _divisor(values: np.ndarray) -> int:
    return int(np.gcd.reduce(values))


def _together(
    groups: list[dict[int, np.ndarray]], a: int, b: int
) -> list[dict[int, np.ndarray]]:
    """Two groups as one, of all combinations."""
    first, second = groups[a], groups[b]
    n, m = (len(next(iter(group.values()))) for group in (first, second))
    if n * m > _MOST:
        raise NotImplementedError("places that cannot be told apart by digits")
    both = {axis: np.repeat(x, m) for axis, x in first.items()}
    for axis, x in second.items():
        both[axis] = both.get(axis, 0) + np.tile(x, n)
    return [g for i, g in enumerate(groups) if i not in (a, b)] + [both]


def _factor(start: int, counts: np.ndarray) -> Factor:
    if not _once(counts) and (counts == 1).all():
        return _ones(start, len(counts))
    return start, counts


def _once(counts: np.ndarray) -> bool:
    return counts.strides == (0,) or (len(counts) == 1 and counts[0] == 1)


def _collapsed(term: Term, shape: Sequence[int]) -> Term:
    """Digits of an axis are one where all of the lower one are met once."""
    term = dict(term)
    for axis, size in enumerate(shape):
        while True:
            own = [of for of in term if any(digit[0] == axis for digit in of)]
            if len(own) < 2 or any(len(of) > 1 for of in own):
                break
            low, high = sorted(own, key=lambda of: of[0][1])[:2]
            (_, stride, many), (_, above, times) = low[0], high[0]
            start, counts = term[low]
            full = start == 0 and len(counts) == many and _once(counts)
            if not (full and _once(term[high][1]) and stride * many == above):
                break
            first, met = term.pop(high)
            del term[low]
            last = above * times >= size
            joined = -(-size // stride) if last else many * times
            ones = np.broadcast_to(np.int64(1), (len(met) * many,))
            term[((axis, stride, joined),)] = first * many, ones
    return term


def _with_equal_digits(
    terms: list[Term], axis: int, shape: Sequence[int]
) -> list[Term]:
    """Terms whose places along an axis have the same digits, where that can be."""
    names = [[of for of in term if any(d[0] == axis for d in of)] for term in terms]
    if any(len(of) > 1 for own in names for of in own):
        return terms
    every = {digit[1] for own in names for [digit] in own}
    strides = sorted(
        stride
        for stride in every
        if all(
            any(_divides(of[0], term[of], stride) for of in own)
            for term, own in zip(terms, names, strict=True)
        )
    )
    found = []
    for term, own in zip(terms, names, strict=True):
        term, digits = dict(term), []
        for of in sorted(own):
            digits += _cut(of[0], term.pop(of), strides)
        for stride, above in itertools.zip_longest(strides, strides[1:]):
            of = [d for d in digits if stride <= d[0][1] < (above or math.inf)]
            digit, factor = functools.reduce(_as_one, of)
            many = above // stride if above else -(-shape[axis] // stride)
            term[((axis, stride, many),)] = factor
        found.append(_collapsed(term, shape))
    return found


def _divides(digit: Digit, factor: Factor, stride: int) -> bool:
    """Whether a digit begins at a stride, or can be cut there."""
    (_, own, many), (start, counts) = digit, factor
    if stride <= own or stride % own:
        return stride == own
    times = stride // own
    even = start % times == 0 and len(counts) % times == 0 and many % times == 0
    return _once(counts) and even


def _cut(
    digit: Digit, factor: Factor, strides: Sequence[int]
) -> list[tuple[Digit, Factor]]:
    found = []
    for stride in strides:
        (axis, own, many), (start, counts) = digit, factor
        if own < stride < own * many and _divides(digit, factor, stride):
            times = stride // own
            found.append(((axis, own, times), _ones(0, times)))
            digit = axis, stride, many // times
            factor = _ones(start // times, len(counts) // times)
    return [*found, (digit, factor)]


def _as_one(
    low: tuple[Digit, Factor], high: tuple[Digit, Factor]
) -> tuple[Digit, Factor]:
    """Two digits, the second next to the first, as one."""
    (axis, stride, many), (start, counts) = low
    (_, _, times), (first, more) = high
    if len(more) * many > _MOST:
        raise NotImplementedError("a result too large to count")
    both = np.zeros((len(more), many), np.int64)
    both[:, start : start + len(counts)] = more[:, None] * counts
    [met] = np.nonzero(both.reshape(-1))
    of = both.reshape(-1)[met[0] : met[-1] + 1]
    factor = _factor(first * many + int(met[0]), of)
    return (axis, stride, many * times), factor


def _ones(start: int, n: int) -> Factor:
    return start, np.broadcast_to(np.int64(1), (n,))  # without memory


def added_up(terms: list[Term], shape: Sequence[int]) -> list[Term]:
    """Fewer terms of the same sum: those that differ in one factor are one."""
    if len({frozenset(term) for term in terms}) > 1:
        for axis in range(len(shape)):
            terms = _with_equal_digits(terms, axis, shape)
    while True:
        before = len(terms)
        for position in range(max((len(term) for term in terms), default=0)):
            alike: dict[tuple, list[Term]] = collections.defaultdict(list)
            for term in terms:
                names = sorted(term)
                varied = names[position] if position < len(names) else None
                rest = [(of, _key(term[of])) for of in names if of != varied]
                alike[(varied, *rest)].append(term)
            terms = [
                same[0] if len(same) == 1 else _joined(same, varied, shape)
                for (varied, *_), same in alike.items()
            ]
        if len(terms) == before:
            return terms


def _key(factor: Factor) -> tuple:
    start, counts = factor
    return start, len(counts), None if _once(counts) else counts.tobytes()


def _joined(terms: list[Term], varied: tuple[Digit, ...], shape: Sequence[int]) -> Term:
    factors = sorted((term[varied] for term in terms), key=lambda factor: factor[0])
    start = factors[0][0]
    end = max(start + len(counts) for start, counts in factors)
    ends = [s + len(counts) for s, counts in factors]
    adjacent = ends[:-1] == [s for s, _ in factors[1:]]
    if adjacent and all(_once(counts) for _, counts in factors):
        _, counts = _ones(start, end - start)
    else:
        if end - start > _MOST:
            raise NotImplementedError("a result too large to count")
        counts = np.zeros(end - start, np.int64)
        for first, more in factors:
            counts[first - start : first - start + len(more)] += more
    return _collapsed({**terms[0], varied: _factor(start, counts)}, shape)


def faults(terms: list[Term], shape: Sequence[int]) -> list[str]:
    terms = added_up(terms, shape)
    if len(terms) == 1:
        lengths = {of: math.prod(many for _, _, many in of) for of in terms[0]}
        full = all(
            start == 0 and len(counts) == lengths[of] and _once(counts)
            for of, (start, counts) in terms[0].items()
        )
        if full and math.prod(lengths.values()) == math.prod(shape):
            return []
    if math.prod(shape) > _MOST:
        raise NotImplementedError("a result too large to count")
    times = np.zeros(math.prod(shape), np.int64)
    for term in terms:
        places, counts = np.zeros(1, np.int64), np.ones(1, np.int64)
        for of, (start, many) in term.items():
            [met] = np.nonzero(many)
            found = np.unravel_index(met + start, [n for _, _, n in of])
            here = sum(
                place * stride * math.prod(shape[axis + 1 :])
                for place, (axis, stride, _) in zip(found, of, strict=True)
            )
            places = (places[:, None] + here).reshape(-1)
            counts = (counts[:, None] * many[met]).reshape(-1)
        times += np.bincount(places, counts, len(times)).astype(np.int64)
    found = []
    for what, wrong in (("never written", times == 0), ("written twice", times > 1)):
        if n := int(np.count_nonzero(wrong)):
            first = tuple(map(int, np.unravel_index(int(np.argmax(wrong)), shape)))
            found.append(f"{n} of {times.size} elements {what}, the first {first}")
    return found
