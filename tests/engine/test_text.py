"""Text in and out of the engine."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_stop_strings_are_strings_and_not_empty(stop: object) -> None:
    with pytest.raises(SettingError, match="stop"):
        stop_strings(stop)  # type: ignore[arg-type]
