"""What a client's JSON can become once it is parsed: for Hypothesis."""

from hypothesis import strategies as st

# Lone surrogates too: JSON escapes let them in.
texts = st.text(st.characters() | st.sampled_from("aé\0\ud800\udfff😀"), max_size=6)
numeric_texts = st.sampled_from(["5300", " 5300.5 ", "1e3", "nan", "inf", "-0", "1_0", "0x10", "", "5300,5", "9" * 400])
integers = st.integers() | st.sampled_from([2**53, 2**53 + 1, 2**63, -(2**63) - 1, 2**70, 10**400])
numbers = integers | st.floats()
scalars = st.none() | st.booleans() | numbers | texts | numeric_texts

values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
objects = st.dictionaries(texts, values, max_size=4)


def some_of(**fields):
    """Objects with some of these keys, and some others."""
    return st.builds(lambda known, other: {**other, **known}, st.fixed_dictionaries({}, optional=fields), objects)
