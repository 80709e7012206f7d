"""YAML as people mean it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from memsim.errors import InputError
from memsim.run import yamlfile


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("1e-3", 1e-3),
        ("1.", 1.0),
        ("+5", 5),
        ("007", 7),
        ("0x10", 16),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        (".inf", math.inf),
        ("", None),
        ("~", None),
        ("none", "none"),
        ("'4'", "4"),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("{a: [1, b]}", {"a": [1, "b"]}),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert yamlfile.parse(text, "text") == value and type(yamlfile.parse(text, "text")) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "line 2: 'a' is given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: &x [*x]", "aliases"),
        ("[" * 200 + "]" * 200, "nested more than 32 levels deep"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: b: c", "not valid YAML at line 1"),
        ("--- 1\n--- 2", "not valid YAML"),
        ("? [a]\n: 1", "a key must be a word"),
        ("a: \0", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        yamlfile.parse(text, "text")
    assert str(error.value).startswith("text: ") and says in str(error.value) and "\n" not in str(error.value)


words = st.text("aefnotuy01+-.:#'\"{}[],&*!|> \n\u00e9", max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | words


@given(st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=4))
def test_what_is_written_reads_the_same(data: dict[str, object]) -> None:
    assert yamlfile.parse(yamlfile.dump(data), "text") == data


@given(st.text("ab01:-[]{}&*!?|>%@`#\"' \n\t\0\x85\ufeff", max_size=40))
def test_nothing_but_an_input_error_leaves(text: str) -> None:
    try:
        yamlfile.parse(text, "text")
    except InputError as error:
        assert "\n" not in str(error)
