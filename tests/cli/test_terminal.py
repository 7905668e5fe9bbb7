"""Tables that cut no name, and styles only where the terminal has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runner import Screen, cli
from fake_engine import model_row
from http_front import serving

from edge_agent.cli.terminal import Terminal

NAME = "smollm2-135m-instruct-of-mine"


def printed(rows: list[tuple[str, ...]], environ: dict[str, str]) -> str:
    out = Screen()
    Terminal(Screen(), out, Screen(), environ).table(("NAME", "SIZE", "WHAT"), rows)
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_table_cuts_nothing_however_narrow_the_terminal(width: int) -> None:
    text = "said in a long sentence, of which every word shall be there"
    shown = printed([(NAME, "105 MB", text)], {"COLUMNS": str(width), "TERM": "xterm"})
    assert NAME in shown and "105 MB" in shown and "…" not in shown
    assert all(word in shown for word in text.split())


@pytest.mark.parametrize("given", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}])
def test_styles_are_left_out_where_they_are_not_wanted(given: dict[str, str]) -> None:
    assert "\x1b" in printed([(NAME, "1 B", "x")], {"TERM": "xterm-256color"})
    assert "\x1b" not in printed([(NAME, "1 B", "x")], given)
    err = Screen()
    Terminal(Screen(), Screen(), err, given).faint("(stopped)")
    assert err.getvalue() == "(stopped)\n"


def test_names_are_whole_in_forty_columns(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        front.store.add_model(model_row(NAME, "models/mine.gguf"))
        for command in (("list",), ("ps",), ("show", NAME), ("status",)):
            shown = cli(*command, state_dir=tmp_path, on_screen=True, environ={"COLUMNS": "40"}).out
            name = NAME if command[0] in ("list", "show") else "tiny"
            assert name in shown and "…" not in shown, command
