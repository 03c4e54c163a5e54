"""Client text as a name: what stays, what is encoded, and that two texts never meet."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.files.names import LONGEST, folder_name


@pytest.mark.parametrize("text", ["SPX", "ES_SPX", "BRK.B", "^VIX", "A-1", "..A", "007"])
def test_ordinary_tickers_are_their_own_folder(text):
    assert folder_name(text) == text


@pytest.mark.parametrize(
    "text, name",
    [
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("A/B", "A%2FB"),
        ("A\\B", "A%5CB"),
        ("A B", "A%20B"),
        ("A%2FB", "A%252FB"),
        ("Ü", "%C3%9C"),
        ("\ud800", "%ED%A0%80"),
        ("\0", "%00"),
        ("a=b", "a%3Db"),
        ("~", "%7E"),
        ("", "%"),
    ],
)
def test_anything_else_is_percent_encoded(text, name):
    assert folder_name(text) == name


@given(st.text(st.characters(codec=None), max_size=300))
def test_a_name_is_one_plain_step_of_a_path(text):
    name = folder_name(text)
    assert name.isascii() and 0 < len(name) <= LONGEST
    assert pathlib.PurePosixPath("/root", name).parts == ("/", "root", name) and name.strip(".")


@given(st.text(max_size=300), st.text(max_size=300))
def test_two_texts_never_share_a_folder(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)
    assert folder_name(folder_name(one * 300)) != folder_name(one * 300) or not one
