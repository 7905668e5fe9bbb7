"""A lesson until its verdict, as `adapt plan` and `adapt run` print it."""

from __future__ import annotations

import io

from edge_agent.cli.commands import adapt
from edge_agent.cli.lesson_text import findings, longest_text, progress_text
from edge_agent.cli.terminal import Terminal

PLANNED = {
    "event": "planned",
    "bytes": {"total": 80_000_000},
    "n_train": 3,
    "n_validation": 0,
    "n_tokens": 90,
    "n_supervised": 40,
    "epoch_s": 2.0,
    "prefix_s": 1.0,
    "rehearsal": {"kind": "kl", "rows": 90, "tokens": 4100, "bytes": 143_000, "seconds": 5.0},
    "notes": ["no row is kept back"],
    "flagged": [{"row": 2, "reason": "contradiction", "text": "'q' is answered 'a', 'b' in row 1"}],
}


def terminal() -> Terminal:
    return Terminal(io.StringIO(), io.StringIO(), io.StringIO(), {})


def test_a_plan_says_what_is_rehearsed_and_what_was_left_out() -> None:
    screen = terminal()
    adapt._print_plan(PLANNED, 14, screen)
    assert isinstance(screen.stdout, io.StringIO) and isinstance(screen.stderr, io.StringIO)
    rehearsed, longest = screen.stdout.getvalue().splitlines()[-2:]
    assert longest == "at most 14 epochs: less than a minute; then the gate asks its questions"
    assert rehearsed == "90 rows are rehearsed (kl): 4100 tokens, 143 kB on the disk, 5.00 s once"
    assert screen.stderr.getvalue().splitlines() == [
        "no row is kept back",
        "row 2 is left out: the same question has different answers:"
        " 'q' is answered 'a', 'b' in row 1",
    ]


def test_a_plan_that_comes_twice_is_noted_once() -> None:
    screen, noted = terminal(), set[str]()
    for _ in range(2):
        adapt._show(PLANNED, lambda *_: None, screen, noted)
    assert isinstance(screen.stderr, io.StringIO)
    assert screen.stderr.getvalue().count("no row is kept back") == 1


def test_a_time_that_was_not_measured_is_unknown() -> None:
    assert "unknown time" in longest_text({"epoch_s": None}, 14)


def test_a_phase_without_steps_shows_its_note() -> None:
    stored = {"phase": "prefix", "step": 0, "n_steps": 0, "note": "states below block 22: 3 of 20"}
    assert progress_text(stored) == "prefix, states below block 22: 3 of 20"
    trained = {**stored, "phase": "train", "step": 2, "loss": 1.0}
    assert progress_text(trained) == "train, loss 1.000"


def test_a_finding_without_a_known_reason_is_still_shown() -> None:
    assert findings({"flagged": [{"row": 1, "reason": "new", "text": "x"}]}) == [
        "row 1 is left out: new: x"
    ]
