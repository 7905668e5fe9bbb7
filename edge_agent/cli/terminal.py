"""A command's view of the terminal: input, text, tables, notes, progress and one JSON document.

Flows in: the process's streams and environment, handed over once by main.py (tests hand over their
own). Flows out: answers and documents on stdout; notes, progress and errors on stderr, so that a
pipe carries nothing but the answer. rich is imported only when stdout is a terminal. Not here: what
is printed (commands/), reading lines in a chat (chat_screen.py).

>>> printable("a\\x1b[31mb\\u0915\\u094d\\n")
'a[31mbक्\\n'
>>> size_text(253_000_000), duration_text(0.0421), duration_text(75)
('253 MB', '42.1 ms', '1m15s')
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO, cast

from edge_agent import json_lines
from edge_agent.errors import EdgeAgentError

if TYPE_CHECKING:
    from rich.console import Console

TEXT_WIDTH = 20
"""A table's column of cells with blanks that is wider than this is text, and may be wrapped."""


class Progress(Protocol):
    """Receives the progress of a pull: a description, and bytes done and in all where they are
    known."""

    def __call__(self, status: str, completed: int | None, total: int | None) -> None: ...


@dataclass(frozen=True)
class Terminal:
    """The streams and environment of one command. `state_dir` is the value of the root's
    --state-dir."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str]
    state_dir: Path | None = None

    @property
    def is_tty(self) -> bool:
        return self.stdout.isatty()

    @property
    def is_dumb(self) -> bool:
        """Whether the terminal has no cursor that could be moved: Emacs' shell, a serial log."""
        return self.environ.get("TERM", "").lower() in ("dumb", "unknown")

    @property
    def columns(self) -> int:
        """Of the terminal that stdout is (80 where it does not say); 0 when stdout is none."""
        if not self.is_tty:
            return 0
        given = self.environ.get("COLUMNS", "")
        if given.isdecimal():
            return int(given)
        try:
            return os.get_terminal_size(self.stdout.fileno()).columns or 80
        except OSError:
            return 80

    @property
    def has_styles(self) -> bool:
        """Whether text may be dim or bold. NO_COLOR (https://no-color.org) asks for neither."""
        return not (self.is_dumb or self.environ.get("NO_COLOR"))

    def console(self, stream: TextIO) -> Console:
        """rich on `stream`, with its styles only where the terminal may have them."""
        from rich.console import Console

        colors: Literal["auto"] | None = "auto" if self.has_styles else None
        return Console(file=stream, highlight=False, color_system=colors, _environ=self.environ)

    def write(self, text: str) -> None:
        """Show a piece of an answer at once, on a terminal without its control characters."""
        self.stdout.write(printable(text) if self.is_tty else text)
        self.stdout.flush()

    def line(self, text: str = "") -> None:
        """As `write`, with a newline."""
        self.write(text + "\n")

    def note(self, text: str) -> None:
        """A line on stderr."""
        self.stderr.write(printable(text) + "\n")
        self.stderr.flush()

    def document(self, value: Any) -> None:
        """The one JSON document that --json prints."""
        self.stdout.write(json_lines.dumps(value, indent=2, default=str) + "\n")
        self.stdout.flush()

    def faint(self, text: str) -> None:
        """A note that stands back behind the answer: dim when stderr is a terminal with styles."""
        is_dim = self.stderr.isatty() and self.has_styles
        dim, plain = ("\x1b[2m", "\x1b[0m") if is_dim else ("", "")
        self.stderr.write(f"{dim}{printable(text)}{plain}\n")
        self.stderr.flush()

    def error(self, error: EdgeAgentError) -> None:
        """`error:` and `hint:` on stderr."""
        for text in error_lines(error):
            self.note(text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns aligned with spaces. A terminal gets a bold header and wrapped columns of text;
        one too narrow for the other columns gets the lines of a pipe, and wraps them itself."""
        clean = [[" ".join(printable(cell).splitlines()) for cell in row] for row in rows]
        if not (self.is_tty and self._print_wrapped(headers, clean)):
            self.line("\n".join(aligned([headers, *clean])))

    def _print_wrapped(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
        """Print the table and return True, or False when it would have to cut a word."""
        from rich.table import Table
        from rich.text import Text

        console = self.console(self.stdout)
        widths = _column_widths([headers, *rows], console.width)
        if widths is None:
            return False
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header, width in zip(headers, widths, strict=True):
            table.add_column(header, width=width)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return True

    @contextmanager
    def progress(self, *, counts_bytes: bool = True) -> Iterator[Progress]:
        """A bar with the remaining time when stderr is a terminal; nothing otherwise.

        It counts bytes and shows their rate, or plain steps without `counts_bytes`.
        """
        if not self.stderr.isatty():
            yield _no_progress
            return
        with _bar(self.console(self.stderr), counts_bytes) as show:
            yield show


def process_terminal(environ: Mapping[str, str]) -> Terminal:
    """The terminal of this process; a character that the locale lacks is printed as `?`."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    return Terminal(
        _or_devnull(sys.stdin, "r"),
        _or_devnull(sys.stdout, "w"),
        _or_devnull(sys.stderr, "w"),
        environ,
    )


def _or_devnull(stream: TextIO | None, mode: str) -> TextIO:
    """The stream, or /dev/null when the parent closed it (`<&-`), for which Python has None."""
    return stream if stream is not None else cast(TextIO, open(os.devnull, mode))


def printable(text: str) -> str:
    """`text` without control characters other than newline and tab.

    A model's answer and a file's metadata are untrusted: an escape sequence in them could rewrite
    the screen or the window's title.
    """
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def error_lines(error: EdgeAgentError) -> list[str]:
    """`error: ...`, then `hint:  ...` when the error says what to do next."""
    lines = [f"error: {error}"]
    return [*lines, f"hint:  {error.hint}"] if error.hint else lines


def error_document(error: EdgeAgentError) -> dict[str, Any]:
    """An error as --json prints it."""
    return {"error": {"code": error.code, "what": error.what, "why": error.why, "hint": error.hint}}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, columns two spaces apart.

    >>> aligned([["NAME", "SIZE"], ["a", "1 B"]])
    ['NAME  SIZE', 'a     1 B']
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _column_widths(rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Cells of each column, at most `room` with two between columns, so that only blanks break a
    column of text. None: they do not fit."""
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    wanted = [max(map(cell_len, column)) for column in columns]
    words = [max(cell_len(x) for cell in column for x in cell.split(" ")) for column in columns]
    least = [b if a > TEXT_WIDTH else a for a, b in zip(wanted, words, strict=True)]
    spare = room - 2 * (len(least) - 1) - sum(least)
    if spare < 0:
        return None
    n_texts = sum(a > b for a, b in zip(wanted, least, strict=True)) or 1
    return [min(a, b + spare // n_texts) for a, b in zip(wanted, least, strict=True)]


def size_text(size_bytes: float | None) -> str:
    """Decimal units with three digits, as `ls --si` and Ollama print them; "-" for None."""
    if size_bytes is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def duration_text(duration_s: float) -> str:
    """Seconds as people write them: "42.1 ms", "1.50 s", "1m15s", "2h03m"."""
    if duration_s < 1:
        return f"{duration_s * 1000:.1f} ms"
    if duration_s < 60:
        return f"{duration_s:.2f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _no_progress(status: str, completed: int | None, total: int | None) -> None:
    return None


@contextmanager
def _bar(console: Console, counts_bytes: bool) -> Iterator[Progress]:
    from rich import progress as rich_progress

    counters: tuple[rich_progress.ProgressColumn, ...] = (rich_progress.MofNCompleteColumn(),)
    if counts_bytes:
        counters = (rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn())
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        *counters,
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(status: str, completed: int | None, total: int | None) -> None:
            text = printable(status)
            bar.update(task, description=text, total=total, completed=completed or 0)

        yield show
