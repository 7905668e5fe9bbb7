from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engine.text_stream import TextStream


def run(text: bytes, sizes: list[int], stops: list[str]) -> tuple[list[str], TextStream]:
    stream, shown, at = TextStream(stops), [], 0
    for size in [*sizes, len(text)]:
        shown.append(stream.push(text[at : at + size]))
        at += size
    return shown, stream


def test_half_a_character_is_held_until_it_is_whole() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "न".encode()] == ["", "", "न"]


def test_an_incomplete_character_at_the_end_is_dropped() -> None:
    stream = TextStream()
    assert stream.push("न".encode()[:2]) == "" and stream.finish() == ""


def test_invalid_bytes_become_replacement_characters() -> None:
    assert TextStream().push(b"a\xffb") == "a\ufffdb"


def test_a_beginning_of_a_stop_string_is_held_back_and_given_out_when_it_was_none() -> None:
    stream = TextStream(["\n\nUser:"])
    assert stream.push(b"yes\n\nUs") == "yes"
    assert stream.push(b"ers know") == "\n\nUsers know"


def test_held_text_is_given_out_at_the_end() -> None:
    stream = TextStream(["stop"])
    assert stream.push(b"full st") == "full " and stream.finish() == "st"


def test_the_earliest_stop_string_wins_and_nothing_follows_it() -> None:
    stream = TextStream(["two", "one"])
    assert stream.push(b"zero one two") == "zero "
    assert (stream.stopped, stream.push(b"more"), stream.finish()) == ("one", "", "")


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=40))
def test_without_stops_the_pieces_add_up_to_the_text(text: str, sizes: list[int]) -> None:
    shown, stream = run(text.encode(), sizes, [])
    assert "".join(shown) + stream.finish() == text


@given(st.text("abE", max_size=30), st.lists(st.integers(1, 4), max_size=40))
def test_however_it_is_cut_the_text_ends_before_the_first_stop(text: str, sizes: list[int]) -> None:
    shown, stream = run(text.encode(), sizes, ["aE", "bbE"])
    whole = "".join(shown) + stream.finish()
    ends = [text.index(stop) for stop in ("aE", "bbE") if stop in text]
    assert whole == (text[: min(ends)] if ends else text)
    assert (stream.stopped is not None) == bool(ends)
