"""Whose adapter the next decode call applies."""

from __future__ import annotations

from edge_agent.engine.adapter_turns import TURN_TOKENS, Demand, Turns

DECODES = Demand(decodes=True, prefills=False)
PREFILLS = Demand(decodes=False, prefills=True)
BOTH = Demand(decodes=True, prefills=True)


def calls(turns: Turns[str], n: int, chunk: int = 64, **demands: Demand) -> str:
    """The keys of n calls in a row."""
    chosen = ""
    for _ in range(n):
        key = turns.choose(demands)
        demand = demands[key]
        prefills = demand.prefills and turns.may_prefill
        turns.took(decoded=demand.decodes, prefilled=chunk if prefills else 0)
        chosen += key
    return chosen


def test_one_adapter_needs_no_turns() -> None:
    turns: Turns[str] = Turns()
    assert calls(turns, 30, a=BOTH) == "a" * 30 and turns.may_prefill


def test_two_that_decode_take_turns_of_eight_tokens() -> None:
    assert calls(Turns(), 32, a=DECODES, b=DECODES) == "a" * 8 + "b" * 8 + "a" * 8 + "b" * 8


def test_a_chunk_of_a_prompt_is_a_turn() -> None:
    assert calls(Turns(), 6, a=PREFILLS, b=PREFILLS) == "ababab"
    assert calls(Turns(), 18, a=DECODES, b=PREFILLS) == "a" * 8 + "b" + "a" * 8 + "b"


def test_small_chunks_are_counted_by_their_tokens() -> None:
    assert calls(Turns(), 16, chunk=2, a=PREFILLS, b=PREFILLS) == "aaaabbbb" * 2


def test_who_decodes_beside_a_prompt_gets_a_whole_turn_and_the_prompt_one_chunk() -> None:
    turns: Turns[str] = Turns()
    seen = []
    for _ in range(10):
        key = turns.choose({"a": BOTH, "b": DECODES})
        seen.append((key, turns.may_prefill))
        turns.took(decoded=True, prefilled=64 if key == "a" and turns.may_prefill else 0)
    assert seen[:9] == [("a", True), *[("a", False)] * 7, ("b", True)]


def test_a_newcomer_waits_one_turn_of_each_of_the_others() -> None:
    turns: Turns[str] = Turns()
    calls(turns, 20, a=DECODES, b=DECODES)
    waited = calls(turns, 3 * TURN_TOKENS, a=DECODES, b=DECODES, c=DECODES).index("c")
    assert waited <= 2 * TURN_TOKENS


def test_who_has_no_more_work_gives_the_rest_of_its_turn_away() -> None:
    turns: Turns[str] = Turns()
    assert calls(turns, 3, a=DECODES, b=DECODES) == "aaa"
    assert calls(turns, 2, b=DECODES) == "bb"
    assert calls(turns, 8, a=DECODES, b=DECODES) == "b" * 7 + "a"  # its call alone counts


def test_nobody_starves_whatever_the_others_do() -> None:
    turns: Turns[str] = Turns()
    demands = {"a": BOTH, "b": DECODES, "c": PREFILLS, "d": DECODES}
    chosen = calls(turns, 200, **demands)
    for key in demands:
        gaps = [len(gap) for gap in chosen.split(key)]
        assert max(gaps) <= 3 * TURN_TOKENS
