import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads.nesting import DEEPEST, is_too_deep


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a": ', b"}"), (b'["]", ', b', "["]')])
@pytest.mark.parametrize("inside", [b"1", b'"[{"', b'"]}"', rb'"\""', rb'"\\", "[[["'])
@pytest.mark.parametrize("around", [b"%s", b"%s, " + b", ".join([b"[1, [2]]"] * 100)])
def test_sixty_four_levels_are_taken_and_one_more_is_not(opening, closing, inside, around):
    if opening.startswith(b"{"):
        inside = b"[%s]" % inside
    levels = DEEPEST - 1 - inside.startswith(b"[")
    for more in (0, 1):
        text = b"[" + around % (opening * (levels + more) + inside + closing * (levels + more)) + b"]"
        assert depth(json.loads(text)) == DEEPEST + more
        assert is_too_deep(text) == bool(more)


def depth(value) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


TEXTS = st.text(alphabet='[]{}"\\\n\u00e4', max_size=6)


@given(
    st.recursive(
        TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=30,
    ),
    st.integers(55, 66),
    st.booleans(),
)
def test_texts_with_brackets_in_them_do_not_count(value, more, ascii_only):
    for _ in range(more):
        value = [value, "]"]
    assert is_too_deep(json.dumps(value, ensure_ascii=ascii_only).encode()) == (depth(value) > DEEPEST)
