"""Log-probabilities of half characters: each entry is kept, offsets stay inside the text."""

from __future__ import annotations

from edge_agent.measured import Timings
from edge_agent.records import ChosenLogprob, Done, TokenLogprob
from edge_agent.server.openai_events import ChatEvents, CompletionEvents

HALVES = [
    TokenLogprob(number, piece.decode("utf-8", "replace"), piece, -0.5 - number)
    for number, piece in enumerate([b"a", b" \xe0", b"\xa4", b"\xa8", b"\xe0", b"b"])
]
"""a, space and the first byte of न, its second and third, a lone first byte, b."""
TEXT = "a न\ufffdb"
CONTROL = TokenLogprob(9, "<|im_end|>", b"", -9.0)
CHOSEN = [ChosenLogprob(one, [*HALVES[2:5], CONTROL]) for one in HALVES]
DONE = Done(1, TEXT, "length", Timings(1, 0, 6, 0.0, 0.1, 0.1, 0.1), None, CHOSEN)


def test_no_alternative_is_lost_and_the_chosen_token_is_among_them() -> None:
    logprobs = CompletionEvents({}, False).whole(DONE)["choices"][0]["logprobs"]
    first = {"bytes:\\xa4": -2.5, "bytes:\\xa8": -3.5, "bytes:\\xe0": -4.5, "<|im_end|>": -9.0}
    assert logprobs["top_logprobs"][0] == {**first, "a": -0.5}
    assert [len(one) for one in logprobs["top_logprobs"]] == [5, 5, 4, 4, 4, 5]
    assert logprobs["tokens"] == ["a", "bytes:\\x20\\xe0", "bytes:\\xa4", "bytes:\\xa8"] + [
        "bytes:\\xe0", "b",
    ]  # fmt: skip


def test_offsets_count_the_characters_before_a_token_in_one_answer_or_in_pieces() -> None:
    events = CompletionEvents({}, False)
    pieces = [events.logprobs(CHOSEN[:2]), events.logprobs(CHOSEN[2:])]
    whole = CompletionEvents({}, False).logprobs(CHOSEN)
    assert [at for one in pieces for at in one["text_offset"]] == whole["text_offset"]
    assert whole["text_offset"] == [0, 1, 2, 2, 3, 3]
    assert TEXT[whole["text_offset"][2]] == "न" and max(whole["text_offset"]) <= len(TEXT)


def test_the_bytes_of_a_chat_add_up_to_its_text() -> None:
    content = ChatEvents({}, False).whole(DONE)["choices"][0]["logprobs"]["content"]
    joined = b"".join(bytes(one["bytes"]) for one in content)
    assert joined.decode("utf-8", "replace") == TEXT
    assert [one["token"] for one in content[:3]] == ["a", "\\x20\\xe0", "\\xa4"]
    (end,) = [top for top in content[0]["top_logprobs"] if top["token"] == "<|im_end|>"]
    assert end["bytes"] == []
