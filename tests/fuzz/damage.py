"""Damage to files, as hypothesis draws it: to bytes, to text, and to trees of plain values."""

from functools import cache
from typing import Any

from hypothesis import strategies as st

POSITION = st.integers(0, 2**31)
WORDS = (
    *("", " ", "  ", "\t", "\n", "\r\n", "\n- ", "\n  ", ": ", "- ", ",", ";", '"', "'", '""', "[", "]", "{", "}"),
    *("[]", "{}", "&a ", "*a", "<<: *a", "!!python/object/new:os.system", "!!binary", "!!set", "#", "|", ">", "?"),
    *("---", "...", "${", "${name}", "\\${name}", "${oc.env:HOME}", "%YAML 9", "=", "~", "null", "true", "no", "0"),
    *("-1", "1e999", ".nan", ".inf", "1_0", "0x1f", "12:30:00", "2026-11-24", "9" * 5000, "\0", "\ufeff", "\u2028"),
    *("é", "🐦", "\x07", "\x85", "name", "all", "cat", "base"),
)
"""What means something to a parser of YAML, CSV or JSON."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=12),
)


@cache
def trees(keys: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values nested in lists and mappings, with `keys` among the keys."""
    names = st.one_of(st.sampled_from(keys), st.text(max_size=6))
    return st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
    )


@st.composite
def damaged_tree(draw: st.DrawFn, whole: Any, keys: tuple[str, ...]) -> Any:
    """`whole` with one to three of its values replaced, taken out or added."""
    tree = whole
    for _ in range(draw(st.integers(1, 3))):
        tree = draw(_one_change(tree, keys))
    return tree


@st.composite
def _one_change(draw: st.DrawFn, tree: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(tree, dict) and tree and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(tree, key=str)))
        what = draw(st.integers(0, 5))
        if what == 0:
            return {name: value for name, value in tree.items() if name != key}
        if what == 1:
            return {**tree, draw(st.sampled_from(keys) | st.text(max_size=8)): draw(trees(keys))}
        return {**tree, key: draw(_one_change(tree[key], keys))}
    if isinstance(tree, list) and tree and draw(st.integers(0, 5)):
        position = draw(st.integers(0, len(tree) - 1))
        what = draw(st.integers(0, 3))
        if what == 0:
            return tree[:position] + tree[position + 1 :]
        if what == 1:
            return [*tree, tree[position]]
        return [*tree[:position], draw(_one_change(tree[position], keys)), *tree[position + 1 :]]
    return draw(trees(keys))


@st.composite
def damaged_text(draw: st.DrawFn, whole: str) -> str:
    """`whole` with one to six spans replaced by words that mean something to a parser."""
    text = whole
    for _ in range(draw(st.integers(1, 6))):
        start = draw(POSITION) % (len(text) + 1)
        end = start + draw(st.sampled_from((0, 0, 1, 2, 10, 100)))
        copied = text[start:end] if draw(st.booleans()) else ""
        text = text[:start] + copied + draw(st.sampled_from(WORDS)) + copied + text[end:]
    return text


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with one to four faults of a disk, a network or a hand: flipped bits, lost, doubled or strange spans."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(POSITION) % (len(data) + 1)
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 512)))
        span = slice(position, position + length)
        operation = draw(st.integers(0, 6))
        if operation <= 1 and position < len(data):
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif operation == 2:
            data[span] = draw(st.binary(min_size=1, max_size=8))
        elif operation == 3:
            del data[span]
        elif operation == 4:
            data[span] = bytes(len(data[span]))
        elif operation == 5:
            data[position:position] = data[span]
        else:
            del data[position:]
    return bytes(data)
