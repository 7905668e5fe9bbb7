"""Reports from made-up documents (labelled so), in HTML and Markdown, and in a browser."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cli_runner import cli

from edge_agent.bench.figures import ImportFailed
from edge_agent.bench.imported import read_documents
from edge_agent.bench.published import ROWS
from edge_agent.bench.report import NOT_MEASURED, build
from edge_agent.bench.report_pages import STYLE, html, markdown
from edge_agent.bench.svg_chart import Bar, Line, bars, lines, number, ticks
from edge_agent.cli.commands.bench import print_documents
from edge_agent.cli.commands.bench_options import BenchOptions
from edge_agent.cli.terminal import Terminal
from edge_agent.client.models import open_models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def invented(**changes: Any) -> dict[str, Any]:
    """A document for the layout. Its figures were invented and measured nowhere."""
    document = {
        "v": 1, "run_id": "run-1", "scenario": "decode", "engine": "worker", "model": "made-up",
        "quantization": "Q4_0", "board_name": "invented board", "n_prompt": 0, "n_gen": 128,
        "n_depth": 0, "avg_ts": 10.2, "median_ts": 10.0, "min_ts": 9.5, "max_ts": 11.0,
        "samples_ts": [9.5, 10.0, 11.0], "test_time": "2026-01-01T00:00:00Z", "n_threads": 4,
        "energy": {"j_per_token": 0.512, "mean_w": 5.12, "idle_w": 2.25, "reason": None},
        "temperature_start_celsius": 40.0, "temperature_max_celsius": 47.5,
        "memory_peak_bytes": 300 << 20, "roofline_fraction": 0.42, "board": {"model": "Board X"},
        "trace": [[0.0, 5.0, 40.0, 1 << 30, 10.0], [1.0, 5.2, 41.0, 1 << 30, 10.0]],
    }  # fmt: skip
    return {**document, **changes}


def both(*documents: dict[str, Any]) -> tuple[str, str]:
    report = build(documents, title="A title", made_at="2026-01-01 00:00 UTC")
    return html(report, STYLE.read_text()), markdown(report)


def test_every_figure_of_a_document_stands_in_both_forms() -> None:
    for text in both(invented()):
        for part in ("10 (9.5-11, n=3)", "0.512", "5.12", "2.25", "40 to 47.5", "300 MiB", "42 %"):
            assert part in text, part


def test_what_was_not_measured_says_so_with_the_reason() -> None:
    blind = invented(
        energy={"reason": "no power sensor: looked everywhere"},
        temperature_start_celsius=None,
        temperature_max_celsius=None,
        memory_peak_bytes=None,
        roofline_fraction=None,
        trace=[],
    )
    for text in both(blind):
        assert text.count(NOT_MEASURED) >= 6
        assert "no power sensor: looked everywhere" in text
        assert "Not measured, or too short for a picture: power" in text


def test_published_figures_stand_apart_with_their_source() -> None:
    page, text = both(invented())
    assert "None of these figures was measured here" in text
    assert all(row.source.split(",")[0].replace("_", "\\_") in text for row in ROWS)
    assert any("not measured by it" in row.source for row in ROWS)
    report = build([invented()], title="t", made_at="now", published=False)
    assert "Published elsewhere" not in markdown(report)
    assert "Published elsewhere" in page


def test_runs_are_compared_and_overlapping_spreads_are_named() -> None:
    faster = invented(run_id="run-2", median_ts=12.0, min_ts=11.5, max_ts=12.5)
    same = invented(run_id="run-3", median_ts=10.1, test_time="2026-01-02T00:00:00Z")
    text = both(invented(), faster, same)[1]
    assert "+20.0 %" in text and "outside the spread" in text and "within the spread" in text


def test_words_from_a_document_are_never_markup() -> None:
    evil = "<script>alert(1)</script>|`*"
    page, text = both(invented(model=evil, board_name=evil, board={"model": evil}))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<script" not in text and "\\|" in text


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_page_is_self_contained_and_without_script() -> None:
    page = both(invented(), invented(scenario="chat", language="hi", concurrency=1))[0]
    parser = Page()
    parser.feed(page)
    assert parser.links == [] and "script" not in parser.tags and "link" not in parser.tags
    assert parser.tags.count("svg") >= 4 and "default-src" in page


def test_charts_are_well_formed_and_tell_their_numbers() -> None:
    chart = bars("Title & more", "tok/s", [Bar("a<b", 10, 8, 12), Bar("c", 0)])
    root = ElementTree.fromstring(chart)
    assert root.attrib["role"] == "img"
    texts = [node.text for node in root.iter() if node.text]
    assert "Title & more" in texts and "10 (8-12)" in texts
    line = lines("L", "W", "s", [Line("x", [(0, 1.0), (1, None), (2, 3.0)])])
    path = [node for node in ElementTree.fromstring(line).iter() if node.get("class") == "line s0"]
    assert path[-1].attrib["d"].count("M") == 2, "a missing value breaks the line"
    assert lines("L", "W", "s", [Line("x", [(0, None)])]) == ""


def test_numbers_have_three_digits_and_no_exponent() -> None:
    shown = [number(value) for value in (1234.5, 12.345, 0.01234, 0, -3.14159, 1e-7)]
    assert shown == ["1234", "12.3", "0.0123", "0", "-3.14", "0.0000001"]
    assert ticks(0, 10) == [0.0, 2.5, 5.0, 7.5, 10.0] and ticks(3, 3) == [3]


def test_llama_bench_rows_are_taken_in_and_labelled(tmp_path: Path) -> None:
    path = tmp_path / "orin.jsonl"
    row = {"n_prompt": 0, "n_gen": 128, "avg_ts": 38.5, "samples_ts": [38, 38.5, 39],
           "model_filename": "/m/gemma.gguf", "test_time": "2026-01-01T00:00:00Z"}  # fmt: skip
    path.write_text(json.dumps(row) + "\n" + '{"torn": tr')
    (found,) = read_documents(path)
    assert (found["model"], found["board_name"], found["engine"]) == (
        "gemma",
        "orin",
        "llama-bench",
    )
    text = both(found)[1]
    assert "llama-bench measures no energy" in text and "38.5 (38-39, n=3)" in text


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"a": 1}', "null", '{"avg_ts": 1, "model": "\\ud800"}']
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(invented()) + f"\n{line}\n" + json.dumps(invented()) + "\n")
    with pytest.raises(ImportFailed, match="line 2 of"):
        read_documents(path)


@pytest.mark.parametrize(
    ("samples", "middle"),
    [([1, 2], 1.5), ([4, 1, 2, 3], 2.5), ([3, 1, 2], 2), ([7, None], 7), ([None], None)],
)
def test_the_median_of_an_even_number_lies_between_the_middle_two(
    tmp_path: Path, samples: list[Any], middle: float | None
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"n_gen": 8, "avg_ts": None, "samples_ts": samples}) + "\n")
    (found,) = read_documents(path)
    assert found["median_ts"] == middle
    assert ("not measured" if middle is None else f"{middle:g} (") in both(found)[1]


SUBJECT = {"language": "hi", "concurrency": 1}
FIGURES: dict[str, Any] = {
    "n_prompt": 8, "n_gen": 8, "n_depth": 0, "avg_ts": 9.0, "median_ts": 9.0, "min_ts": 8.0,
    "max_ts": 10.0, "samples_ts": [8.0, 10.0], "temperature_max_celsius": 50.0,
    "temperature_start_celsius": 40.0, "memory_peak_bytes": 9, "roofline_fraction": 0.5,
    "energy": {"j_per_token": 1.0, "mean_w": 2.0, "idle_w": 1.0}, "clocks": {"cpu_hz": 1e9},
    "ttft_s": {"median": 1.0, "min": 1.0, "max": 1.0}, "board": {"model": "x"},
    "tpot_s": {"median": 1.0, "min": 1.0, "max": 1.0}, "trace": [[0.0, 5.0, 40.0, 1, 1.0]] * 2,
    "e2e_s": {"median": 1.0, "min": 1.0, "max": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("scenario", ["decode", "chat"])
def test_a_figure_may_be_null_or_absent(tmp_path: Path, scenario: str) -> None:
    path, whole = tmp_path / "x.jsonl", invented(scenario=scenario, **SUBJECT, **FIGURES)
    for member, value in FIGURES.items():
        empty = dict.fromkeys(value) if isinstance(value, dict) else None
        rows = [whole, {**whole, member: None}, {**whole, member: empty}]
        rows += [{name: one for name, one in whole.items() if name != member or name == "avg_ts"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for text in both(*read_documents(path)):
            assert "None tokens" not in text and ">None<" not in text and "| None |" not in text


WRONG = ["12", True, float("nan"), 1e999, 10**400, ["x"], {"median": "x"}]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: str(value)[:12])
def test_what_is_no_figure_is_refused_by_its_line_and_member(tmp_path: Path, wrong: Any) -> None:
    path = tmp_path / "x.jsonl"
    for member in FIGURES:
        if member not in ("board", "energy", "clocks") or not isinstance(wrong, dict):
            row = json.dumps(invented(**{**FIGURES, member: wrong}))
            path.write_text(json.dumps(invented()) + "\n" + row + "\n")
            with pytest.raises(ImportFailed, match=rf"line 2 of .*\$\.{member}"):
                read_documents(path)


def test_a_stored_document_with_text_for_a_figure_is_named(tmp_path: Path) -> None:
    with open_models(tmp_path, {}) as library:
        library.add_benchmarks([invented(median_ts="fast")])
    done = cli("report", "-o", str(tmp_path / "r.html"), state_dir=tmp_path)
    assert done.code == 1
    assert done.err.startswith("error: the stored run run-1 cannot be reported: Expected")
    assert "$.median_ts" in done.err and "null for what was not measured" in done.err


def test_a_document_survives_the_round_through_jsonl(tmp_path: Path) -> None:
    said = "odd\u2028 na\x85me\u2029\v\f\x1c"
    out = io.StringIO()
    terminal = Terminal(io.StringIO(), out, io.StringIO(), {})
    options = BenchOptions(jsonl=True)
    print_documents(options, terminal, [invented(model=said), invented()], stored=False)
    assert len(out.getvalue().splitlines()) == 2
    path = tmp_path / "x.jsonl"
    path.write_text(out.getvalue())
    assert [one["model"] for one in read_documents(path)] == [said, "made-up"]
    path.write_text("\ufeff" + json.dumps(invented(model=said), ensure_ascii=False) + "\n")
    assert read_documents(path)[0]["model"] == said, "as version 0.2 wrote it"


def test_command_writes_both_files_from_imports_alone(tmp_path: Path) -> None:
    source = tmp_path / "nano.jsonl"
    source.write_text(json.dumps(invented()) + "\n")
    out = tmp_path / "out.html"
    done = cli("report", "--import", str(source), "--last", "0", "-o", str(out), state_dir=tmp_path)
    assert done.code == 0, done.err
    assert "made-up" in out.read_text() and "made-up" in (tmp_path / "out.md").read_text()
    assert done.out.splitlines() == [str(out), str(tmp_path / "out.md")]


def test_command_without_benchmarks_says_what_to_do(tmp_path: Path) -> None:
    done = cli("report", "-o", str(tmp_path / "r.html"), state_dir=tmp_path)
    assert done.code == 2 and "edge-agent bench" in done.err
    assert not (tmp_path / "r.html").exists()


def test_unknown_run_and_unwritable_place_are_usage_errors(tmp_path: Path) -> None:
    assert cli("report", "--run", "nope", state_dir=tmp_path).code == 2
    source = tmp_path / "x.jsonl"
    source.write_text(json.dumps(invented()) + "\n")
    place = str(tmp_path / "absent" / "r.html")
    done = cli("report", "--import", str(source), "--last", "0", "-o", place, state_dir=tmp_path)
    assert done.code == 2 and "cannot write" in done.err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_page_fits_a_phone_and_asks_for_nothing(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    path = tmp_path / "r.html"
    chat = invented(scenario="chat", language="kn", concurrency=2, n_prompt=40)
    path.write_text(both(invented(), chat)[0])
    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 375, "height": 812})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        chromium.close()
    assert asked == [path.as_uri()] and complaints == []
