"""Text in and out of the engine."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from moe_lab.engine.text import TextStream, stop_strings, to_ids
from moe_lab.errors import SettingError


class Bytes:
    """A tokenizer whose ids are UTF-8 bytes: the hardest case for a stream of text."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def stream(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    out = TextStream(Bytes(), stops)
    pieces = []
    for id in text.encode():
        pieces.append(out.push(id))
        if out.stopped:
            return pieces, out
    return [*pieces, out.flush()], out


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語のテキスト", "a🙂b\r\n\tc", ""])
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(stream(text)[0]) == text


def test_no_piece_shows_half_a_character() -> None:
    assert all("\ufffd" not in piece for piece in stream("é🙂ü")[0])


def test_broken_bytes_at_the_end_are_shown_at_the_end() -> None:
    out = TextStream(Bytes())
    assert [out.push(i) for i in b"a" + b"\xf0\x9f"] == ["a", "", ""]
    assert out.flush() == "\ufffd"


def test_a_stop_string_ends_the_text_before_itself() -> None:
    pieces, out = stream("one two END three", ("END",))
    assert out.stopped and "".join(pieces) == "one two "


def test_what_might_become_a_stop_string_is_held_back_and_then_shown() -> None:
    pieces, out = stream("xEND of ENx", ("ENDE",))
    assert not out.stopped and "".join(pieces) == "xEND of ENx"
    assert pieces[1:4] == ["", "", ""]


def test_the_earliest_of_several_stop_strings_wins() -> None:
    pieces, _ = stream("abcdef", ("def", "cd"))
    assert "".join(pieces) == "ab"


def test_ids_pass_without_a_tokenizer_and_text_does_not() -> None:
    assert to_ids(np.array([1, 2]), None, 10, "prompt") == [1, 2]
    with pytest.raises(SettingError, match="no tokenizer"):
        to_ids("hello", None, 10, "prompt")


@pytest.mark.parametrize(("given", "says"), [
    ("", "empty"), ([], "empty"), ([11], "0 to 9"), ([-1], "0 to 9"), (3.5, "list of token ids"),
])
def test_a_prompt_that_cannot_be_used_says_why(given: object, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        to_ids(given, Bytes(), 10, "prompt")  # type: ignore[arg-type]


class Words:
    """A tokenizer of whole words, in which ``<|end|>`` is special and ``<|user|>`` is not."""

    words = ("one ", "two ", "<|end|>", "<|user|>", "\ud83d")
    added_tokens_decoder: ClassVar = {2: SimpleNamespace(content="<|end|>", special=True),
                                      3: SimpleNamespace(content="<|user|>", special=False)}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [self.words.index(text)]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **_: object) -> str:
        return "".join(self.words[i] for i in ids if not (skip_special_tokens and i == 2))

    def convert_ids_to_tokens(self, id: int) -> str:
        return self.words[id]


@pytest.mark.parametrize(("stops", "shown", "stopped"), [
    ((), "one two <|user|>two ", False),
    (("<|end|>",), "one ", True),
    (("<|end|>two",), "one ", True),                # a special token and text
    (("one <|end|>",), "", True),
    (("<|end|>one",), "one two <|user|>two ", False),
    (("<|user|>",), "one two ", True),              # an added token that is not special is text
    (("nd|>tw", "never"), "one two <|user|>two ", False),
], ids=str)
def test_a_stop_string_that_names_a_special_token_stops_there_and_shows_none(stops, shown, stopped) -> None:
    out = TextStream(Words(), stops)
    pieces = []
    for id in (0, 2, 1, 3, 1):
        pieces.append(out.push(id))
        if out.stopped:
            break
    pieces.append(out.flush())
    assert ("".join(pieces), out.stopped) == (shown, stopped)


def test_an_unfinished_character_before_a_special_token_is_shown_before_it_stops() -> None:
    out = TextStream(Words(), ("<|end|>",))
    assert out.push(4) + out.push(2) == "\ud83d" and out.stopped


def test_a_token_that_the_embedding_has_no_row_for_is_named() -> None:
    with pytest.raises(SettingError, match=r"text holds the token '<\|end\|>', whose id is 2, .* ids 0 to 1"):
        to_ids("<|end|>", Words(), 2, "text")


@pytest.mark.parametrize("given", [
    b"def f", bytearray(b"x"), memoryview(b"x"), {5, 3}, frozenset([5]),
    {"input_ids": [1]}, [1.7, 2.2], [1.0], ["5", "6"], [True, False], np.array([True]),
    np.array([1.5]), torch.tensor([1.0]), torch.tensor([[1, 2]]), [None], [[1]], "\ud800",
], ids=repr)
def test_what_is_no_token_id_is_refused_and_not_rounded(given: object) -> None:
    with pytest.raises(SettingError, match="prompt"):
        to_ids(given, Bytes(), 10, "prompt")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [(1, 2), range(1, 3), np.array([1, 2], np.uint8), [np.int32(1), np.int64(2)],
                                   torch.tensor([1, 2])], ids=repr)
def test_whole_numbers_of_any_kind_are_token_ids(given: object) -> None:
    found = to_ids(given, None, 10, "prompt")  # type: ignore[arg-type]
    assert found == [1, 2] and all(type(i) is int for i in found)


@pytest.mark.parametrize("stop", ["", ["a", ""], [3], 3, np.array(3), torch.tensor(3)])
def test_stop_strings_are_strings_and_not_empty(stop: object) -> None:
    with pytest.raises(SettingError, match="must be a string or a list"):
        stop_strings(stop, object())  # type: ignore[arg-type]


def test_a_stop_string_that_no_tokenizer_could_find_is_refused() -> None:
    assert stop_strings(None, None) == stop_strings([], None) == ()
    with pytest.raises(SettingError, match="no tokenizer"):
        stop_strings("zz", None)
