"""report: one HTML file and one of Markdown from benchmarks of this machine and of others.

Flows in: stored documents, imported JSON lines. Flows out: the two files, written whole or not at
all. Not here: what a report says (edge_agent/bench/report.py), measuring (bench.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.cli.options import Options
from edge_agent.cli.terminal import Terminal
from edge_agent.errors import UsageError

LAST_DOCUMENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file.")
    ] = Path("report.html")
    md: Annotated[Path | None, typer.Option(metavar="FILE", help="[HTML file's name, .md].")] = None
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE", help="JSON lines of another machine; repeatable."),
    ] = None
    last: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the stored runs, the last N; 0 none.")
    ] = 5
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN_ID", help="These stored runs; repeatable.")
    ] = None
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Add figures of others.")
    ] = True
    title: Annotated[str, typer.Option(metavar="TEXT", help="Heading.")] = "Benchmark report"


def report(options: ReportOptions, terminal: Terminal) -> int:
    """Make a report from stored and imported benchmarks: report.html and report.md.

    The HTML file is self-contained: pictures inside, no script, nothing fetched.

    Examples:
      edge-agent report
      edge-agent report -o nano.html --last 1 --title "Nano, 10 W"
      edge-agent report --import orin.jsonl --import nano.jsonl --last 0
    """
    from edge_agent import atomic_file
    from edge_agent.bench.report import build
    from edge_agent.bench.report_pages import STYLE, html, markdown

    documents = _documents(options, terminal)
    if not documents:
        hint = "measure first: `edge-agent bench`; or --import FILE.jsonl"
        raise UsageError("there is nothing to report", "no benchmark is stored or imported", hint)
    made_at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    whole = build(documents, title=options.title, made_at=made_at, published=options.published)
    md_path = options.md or options.output.with_suffix(".md")
    texts = {options.output: html(whole, STYLE.read_text("utf-8")), md_path: markdown(whole)}
    for path, text in texts.items():
        try:
            atomic_file.write(path.absolute(), text.encode(), 0o644)
        except OSError as error:
            hint = "choose another place with -o and --md"
            raise UsageError(f"cannot write {path}", error.strerror or str(error), hint) from error
    paths = [str(path.absolute()) for path in texts]
    if options.json:
        terminal.document({"html": paths[0], "md": paths[1], "documents": len(documents)})
    else:
        terminal.line("\n".join(paths))
    return 0


def _documents(options: ReportOptions, terminal: Terminal) -> list[dict[str, Any]]:
    """Documents of the stored runs that were chosen, then those of the imported files.

    Raises ImportFailed, UsageError.
    """
    from edge_agent.bench.figures import checked
    from edge_agent.bench.imported import read_documents
    from edge_agent.client.models import open_models

    stored: list[dict[str, Any]] = []
    if options.run or options.last:
        with open_models(options.state_dir, terminal.environ) as library:
            stored = library.benchmarks(LAST_DOCUMENTS)
    runs = list(dict.fromkeys(str(one.get("run_id")) for one in stored))
    unknown = [run for run in options.run or [] if run not in runs]
    if unknown:
        hint = f"stored: {', '.join(runs[:10]) or 'none'}"
        raise UsageError(f"there is no stored run {unknown[0]!r}", "", hint)
    wanted = options.run or runs[: options.last]
    found = [
        dict(checked(one, f"the stored run {run}"))
        for one in stored
        if (run := str(one.get("run_id"))) in wanted
    ]
    for path in options.imports or []:
        found += read_documents(path)
    return found
