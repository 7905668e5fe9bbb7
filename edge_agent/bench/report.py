"""From benchmark documents to the sections of a report, independent of its file format.

Flows in: documents of this machine and of others (ours, or plain llama-bench rows). Flows out: a
Report of tables, charts and sentences. A figure that was not measured reads "not measured", never 0
and never blank, and the reasons stand below the table. Figures published by others stay in a table
of their own. Not here: HTML and Markdown (report_pages.py), drawing (svg_chart.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.bench.published import ROWS
from edge_agent.bench.svg_chart import Bar, Line, bars, lines, number
from edge_agent.bench.table import label

Document = Mapping[str, Any]
NOT_MEASURED = "not measured"
MIB = 1 << 20


@dataclass(frozen=True)
class Table:
    """One table; `notes` are sentences below it."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Sentences, then tables, then charts (SVG text; an empty chart is left out)."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All content of a report; `documents` are the raw figures that its last part lists."""

    title: str
    made_at: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    documents: tuple[Document, ...] = field(default=())


# ---- one figure ------------------------------------------------------------------------------


def figure(value: float | None, unit: str = "", digits: int | None = None) -> str:
    """The value with its unit, or "not measured". Without `digits`: three significant digits.

    >>> figure(12.345, "W"), figure(None)
    ('12.3 W', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    text = number(value) if digits is None else f"{value:.{digits}f}"
    return f"{text} {unit}".strip()


def with_spread(document: Document) -> str:
    """Median (lowest-highest, n=runs) in tokens per second."""
    n = sum(rate is not None for rate in document.get("samples_ts") or [])
    middle, low, high = (document.get(f"{name}_ts") for name in ("median", "min", "max"))
    return NOT_MEASURED if middle is None else f"{figure(middle)} ({_range(low, high)}, n={n})"


def _range(low: float | None, high: float | None) -> str:
    return "range not told" if low is None or high is None else f"{figure(low)}-{figure(high)}"


def subject(document: Document) -> tuple[str, str, str, str]:
    """(board, model, engine, run), which two repetitions of one test share."""
    names = ("board_name", "model", "engine", "run_id")
    board, model, engine, run = (str(document.get(name) or "unknown") for name in names)
    return board, model, engine, run


def _reasons(documents: Iterable[Document]) -> tuple[str, ...]:
    """Why energy is missing, by board, each reason once."""
    found = {
        f"{document.get('board_name')}: {reason}"
        for document in documents
        if (reason := (document.get("energy") or {}).get("reason"))
    }
    return tuple(sorted(found))


# ---- the sections ----------------------------------------------------------------------------


def build(
    documents: Sequence[Document], *, title: str, made_at: str, published: bool = True
) -> Report:
    """The whole report. `documents` may be in any order.

    Example: `build(documents, title="Two boards", made_at="2026-11-30")`
    """
    ordered = sorted(documents, key=lambda one: (*subject(one), str(one.get("test_time"))))
    sections = [_raw(ordered), _chat(ordered), _over_time(ordered), _comparison(ordered)]
    if published:
        sections.append(_published())
    sections.append(_method())
    kept = tuple(one for one in sections if one.tables or one.charts or one.text)
    return Report(title, made_at, _facts(ordered), kept, tuple(ordered))


def _facts(documents: Sequence[Document]) -> tuple[tuple[str, str], ...]:
    """One line of facts for each machine."""
    facts: dict[str, str] = {}
    for document in documents:
        board = document.get("board") or {}
        name = str(document.get("board_name"))
        parts = [
            board.get("model") or board.get("cpu") or document.get("cpu_info"),
            board.get("os"),
            f"L4T {board['l4t']}" if board.get("l4t") else None,
            f"power mode {board['power_mode']}" if board.get("power_mode") else None,
            f"{document.get('n_threads')} threads",
            _clock(document),
            str(document.get("build_commit") or ""),
        ]
        facts[name] = ", ".join(str(part) for part in parts if part)
    return tuple(facts.items())


def _clock(document: Document) -> str | None:
    hertz = (document.get("clocks") or {}).get("cpu_hz")
    return f"CPU at {hertz / 1e9:.2f} GHz" if hertz else None


HEADLINE = (
    "board", "model", "test", "tok/s", "J/token", "mean W", "idle W", "heat", "memory", "of limit",
)  # fmt: skip


def _raw(documents: Sequence[Document]) -> Section:
    raw = [one for one in documents if one.get("scenario") != "chat"]
    if not raw:
        return Section("Speed")
    rows = tuple(_headline(one) for one in raw)
    note = "tok/s: median (lowest-highest, number of runs), without tokenizing and sampling unless "
    note += "the engine is the daemon. of limit: the share of what memory bandwidth allows."
    table = Table("Prefill and decode", HEADLINE, rows, (note, *_reasons(raw)))
    charts = [
        bars(f"{name}: tokens per second", "tok/s", [_bar(one, raw) for one in measured])
        for name in ("Prefill", "Decode")
        if (measured := [one for one in raw if _has_rate(one, name.lower())])
    ]
    return Section("Speed", (), (table,), (*charts, _joule_bars(raw)))


def _has_rate(document: Document, scenario: str) -> bool:
    return document.get("scenario") == scenario and document.get("median_ts") is not None


def _headline(document: Document) -> tuple[str, ...]:
    energy = document.get("energy") or {}
    memory = document.get("memory_peak_bytes")
    share = document.get("roofline_fraction")
    return (
        str(document.get("board_name")),
        f"{document.get('model')} {document.get('quantization') or ''}".strip(),
        f"{label(document)} ({document.get('engine')})",
        with_spread(document),
        figure(energy.get("j_per_token")) if document.get("n_gen") else "-",
        figure(energy.get("mean_w")),
        figure(energy.get("idle_w")),
        heat(document),
        NOT_MEASURED if memory is None else f"{memory / MIB:.0f} MiB",
        "-" if document.get("scenario") != "decode" else _percent(share),
    )


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.0f} %"


def heat(document: Document) -> str:
    """Temperature at the start and the highest, in degrees Celsius."""
    start, high = (document.get(f"temperature_{when}_celsius") for when in ("start", "max"))
    return NOT_MEASURED if high is None else f"{figure(start)} to {figure(high)} °C"


def _bar(document: Document, beside: Sequence[Document]) -> Bar:
    boards = sorted({str(one.get("board_name")) for one in beside})
    board = str(document.get("board_name"))
    name = f"{document.get('model')} {label(document)}"
    return Bar(
        f"{name}, {board}" if len(boards) > 1 else name,
        document["median_ts"],
        document.get("min_ts"),
        document.get("max_ts"),
        boards.index(board),
    )


def _joule_bars(documents: Sequence[Document]) -> str:
    rows = [
        Bar(f"{one.get('model')} {label(one)}, {one.get('board_name')}", joules, series=2)
        for one in documents
        if (joules := (one.get("energy") or {}).get("j_per_token")) is not None
    ]
    return bars("Joules per generated token", "J", rows) if rows else ""


CHAT = ("board", "model", "language", "at once", "prompt", "ttft", "per token", "answer", "J/token")


def _chat(documents: Sequence[Document]) -> Section:
    chats = [one for one in documents if one.get("scenario") == "chat"]
    if not chats:
        return Section("Chats")
    text = (
        "Time from sending a question to the first token (ttft), between tokens, and to the end of "
        "an answer of a fixed number of tokens. The same sentence costs very different numbers of "
        "tokens in different languages, so compare whole answers and not tok/s.",
    )
    rows = tuple(_chat_row(one) for one in chats)
    answered = [_chat_bar(one) for one in chats if (one.get("e2e_s") or {}).get("median")]
    charts = (bars("Seconds until the answer is complete", "s", answered),) if answered else ()
    table = Table("Chats, medians (lowest-highest)", CHAT, rows, _reasons(chats))
    return Section("Chats", text, (table,), charts)


def _chat_row(document: Document) -> tuple[str, ...]:
    energy = document.get("energy") or {}
    return (
        str(document.get("board_name")),
        f"{document.get('model')} ({document.get('engine')})",
        str(document.get("language")),
        str(document.get("concurrency")),
        _tokens(document.get("n_prompt")),
        _seconds(document.get("ttft_s")),
        _seconds(document.get("tpot_s")),
        f"{_seconds(document.get('e2e_s'))} for {_tokens(document.get('n_gen'))}",
        figure(energy.get("j_per_token")),
    )


def _tokens(count: int | None) -> str:
    return "unknown tokens" if count is None else f"{count} tokens"


def _seconds(spread: Mapping[str, Any] | None) -> str:
    if not spread or spread.get("median") is None:
        return NOT_MEASURED
    return f"{figure(spread['median'])} s ({_range(spread.get('min'), spread.get('max'))})"


def _chat_bar(document: Document) -> Bar:
    e2e = document["e2e_s"]
    name = f"{document.get('model')} {document.get('language')} x{document.get('concurrency')}"
    return Bar(
        f"{name}, {document.get('board_name')}", e2e["median"], e2e.get("min"), e2e.get("max"), 1
    )


LINES = 6
"""The most lines in one chart; more could not be distinguished."""
SERIES = (
    ("Power", "W", 1),
    ("Hottest zone", "°C", 2),
    ("Memory available", "MiB", 3),
    ("Speed", "tok/s", 4),
)


def _over_time(documents: Sequence[Document]) -> Section:
    """One chart per quantity with the longest tests, each drawn from its own start."""
    traced = [one for one in documents if len(one.get("trace") or []) > 1]
    longest = sorted(traced, key=lambda one: -float(one["trace"][-1][0]))[:LINES]
    shown = [one for one in traced if one in longest]
    charts = []
    missing = []
    for name, unit, column in SERIES:
        divisor = MIB if unit == "MiB" else 1
        rows = [
            Line(
                f"{one.get('model')} {label(one)}, {one.get('board_name')}",
                [(point[0], _part(point, column, divisor)) for point in one["trace"]],
            )
            for one in shown
        ]
        picture = lines(f"{name} over time", unit, "seconds since the test began", rows)
        charts += [picture] if picture else []
        missing += [] if picture else [name.lower()]
    text = [f"The {len(shown)} longest of {len(traced)} tests."] if len(traced) > LINES else []
    text += [f"Not measured, or too short for a picture: {', '.join(missing)}."] if missing else []
    return Section("Over time", tuple(text), (), tuple(charts))


def _part(point: Sequence[float | None], column: int, divisor: float) -> float | None:
    value = point[column] if len(point) > column else None
    return None if value is None else value / divisor


def _comparison(documents: Sequence[Document]) -> Section:
    """Tests that the same model ran more than once: in other runs or on other boards."""
    groups: dict[tuple[str, str, Any], list[Document]] = {}
    for document in documents:
        key = (str(document.get("model")), label(document), document.get("n_gen"))
        groups.setdefault(key, []).append(document)
    rows = []
    for (model, test, _), group in groups.items():
        first, *others = sorted(group, key=lambda one: str(one.get("test_time")))
        for other in others:
            rows.append((model, test, _place(first), _place(other), *_difference(first, other)))
    if not rows:
        return Section("Runs compared")
    headers = ("model", "test", "first", "other", "tok/s", "difference", "")
    return Section(
        "Runs compared", (), (Table("Later runs against the first", headers, tuple(rows)),)
    )


def _place(document: Document) -> str:
    board, _, engine, run = subject(document)
    return f"{board}, {engine}, {run}"


def _difference(first: Document, other: Document) -> tuple[str, str, str]:
    a, b = first.get("median_ts"), other.get("median_ts")
    difference = NOT_MEASURED if not a or b is None else f"{100 * (b / a - 1):+.1f} %"
    return f"{figure(a)} and {figure(b)}", difference, _overlap(first, other)


def _overlap(first: Document, other: Document) -> str:
    ends = [one.get(f"{end}_ts") for one in (first, other) for end in ("min", "max")]
    if any(end is None for end in ends):
        return "spread not told"
    is_within = first["min_ts"] <= other["max_ts"] and other["min_ts"] <= first["max_ts"]
    return "within the spread" if is_within else "outside the spread"


def _published() -> Section:
    headers = (
        "board",
        "model",
        "engine",
        "prefill tok/s",
        "decode tok/s",
        "W",
        "J/token",
        "source",
    )
    rows = tuple(
        (
            one.board,
            one.model,
            one.engine,
            *(
                value or "not told"
                for value in (one.prefill_tok_s, one.decode_tok_s, one.watts, one.j_per_token)
            ),
            one.source,
        )
        for one in ROWS
    )
    text = ("Reported by others on their own boards. None of these figures was measured here.",)
    return Section("Published elsewhere", text, (Table("Reference figures", headers, rows),))


def _method() -> Section:
    return Section(
        "How it was measured",
        (
            "Each test is warmed up once and repeated; the median and the whole range are given. "
            "Before the first test the board rests, and before each test it cools down to the "
            "temperature it had then, where it has a thermometer.",
            "Joules are power integrated over the time the engine worked, by the trapezoid rule on "
            "the monotonic clock (a counter: end minus start), of the rail that feeds the whole "
            "board. Stretches without samples add neither joules nor time. Fewer than 10 samples "
            "give no figure. J/token is the energy of decoding over the tokens generated. Energy "
            "is summed over a test's repetitions. Nothing is estimated.",
            "The limit is memory bandwidth, measured in the same run by summing a large buffer on "
            "the processor, over the bytes that one token reads. It says nothing about a GPU.",
        ),
    )
