"""What happens to good files: strategies of changes, and what applies them."""

import json
import math

import guard
from hypothesis import strategies as st

#: Characters of every kind, halves of pairs too.
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
WORDS = ["", ".", "..", "/", "../x", "a\0b", "\x1b[31m", "\ud800", "~root", "x" * 999]
WORDS += ["9" * 30, "16", "true", "null", "nan", "[red]", "<b>", "名", "%d", "\u202e"]
WORDS += ["\n"]
ADDRESSES = st.deferred(lambda: st.sampled_from(guard.addresses))
STRANGE = st.sampled_from(WORDS) | ADDRESSES
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**16, 2**31, 2**63, 10**30, 10**9, -(10**30)]),
    st.floats(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT, STRANGE)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT | STRANGE, inner, max_size=4)
    ),
    max_leaves=6,
)
SHARE = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "set", "drop", "add", "wrap"]), SHARE, JSON),
    min_size=1,
    max_size=3,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "hole", "cut", "insert", "append", "repeat"]),
        SHARE,
        st.integers(1, 255),
    ),
    max_size=4,
)


def places(value, path=()):
    """The paths of all values within one, the whole first."""
    found = [path]
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found += places(inner, (*path, key))
    return found


def changed(value, changes):
    """A copy of a JSON value with some `CHANGES`."""
    for kind, share, new in changes:
        whole = [json.loads(json.dumps(value))]
        found = places(whole[0])
        inner, key = whole, 0
        for part in found[int(share * len(found))]:
            inner, key = inner[key], part
        if kind == "set":
            inner[key] = new
        elif kind == "wrap":
            inner[key] = [inner[key]]
        elif kind == "add" and isinstance(inner[key], dict):
            inner[key][str(new)] = new
        elif kind == "add" and isinstance(inner[key], list):
            inner[key].append(new)
        elif inner is not whole:
            del inner[key]
        value = whole[0]
    return value


def edited(content, edits):
    """Bytes with some `EDITS`."""
    data = bytearray(content)
    for kind, share, byte in edits:
        place = int(share * len(data))
        if kind == "flip" and data:
            data[place] ^= byte
        elif kind == "hole":
            length = min(len(data) - place, 1 + len(data) * byte // 1000)
            data[place : place + length] = bytes(length)
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = bytes([byte]) * (1 + byte % 9)
        elif kind == "append":
            data += bytes([byte]) * byte
        elif kind == "repeat":
            data[place:place] = data[place : place + byte]
    return bytes(data)


def same(one, other):
    """Whether two JSON values are one; NaN is itself, and 1 is 1.0 but not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return one == other
