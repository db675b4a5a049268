from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkor.backend.inference.detokenizer import StopStrings, TextStream
from tests.fakes.tiny_model import byte_tokenizer

pytestmark = pytest.mark.slow  # the tokenizer's library takes seconds to import


@given(st.text(max_size=40), st.data())
def test_characters_are_never_split_or_repeated(text: str, data: st.DataObject) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    if data.draw(st.booleans()):  # also invalid sequences
        tokens = data.draw(st.permutations(tokens))
    stream = TextStream(lambda ids: str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)))
    deltas = [stream.push(token) for token in tokens]
    assert all("\ufffd" not in delta or "\ufffd" in tokenizer.decode(tokens) for delta in deltas)
    assert "".join([*deltas, stream.flush()]) == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def test_text_comes_as_soon_as_it_is_final() -> None:
    tokenizer = byte_tokenizer()
    stream = TextStream(lambda ids: str(tokenizer.decode(ids)))
    assert [stream.push(token) for token in tokenizer("aß€😀b").input_ids] == (
        ["a", "", "ß", "", "", "€", "", "", "", "😀", "b"]
    )


# Stop strings


def pieces(text: str, data: st.DataObject) -> list[str]:
    """A text with random splits."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.data())
def test_text_ends_exactly_before_a_stop_string(text: str, stops: list[str], data: st.DataObject) -> None:
    stream = StopStrings(stops)
    shown = ""
    for piece in pieces(text, data):
        shown += stream.push(piece)
        assert not any(stop in shown for stop in stops)
        if stream.hit:
            break
    assert stream.hit == any(stop in text for stop in stops)
    shown += "" if stream.hit else stream.flush()
    if stream.hit:
        assert any(text.startswith(shown + stop) for stop in stops)
    else:
        assert shown == text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_first_complete_stop_string_ends_the_text(text: str, stops: list[str]) -> None:
    stream = StopStrings(stops)
    shown = "".join(stream.push(letter) for letter in text if not stream.hit)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        whole = text[: min(ends)]
        assert shown == whole[: min(whole.find(stop) for stop in stops if stop in whole)]


def test_only_possible_stop_strings_are_withheld() -> None:
    stream = StopStrings(["<end>"])
    assert [stream.push(piece) for piece in ("a", "<", "b", "<en", "d", "x", "<end>")] == [
        "a",
        "",
        "<b",
        "",
        "",
        "<endx",
        "",
    ]
    assert stream.hit
