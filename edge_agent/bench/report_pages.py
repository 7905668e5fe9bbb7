"""A report as one HTML file, or as Markdown for an issue or a repository.

Flows in: a Report, and for HTML the style sheet. Flows out: text. The HTML holds its styles and
charts, has no script and fetches nothing; every word that came from a document is escaped, and the
page's content security policy forbids scripts and requests as well. Markdown leaves the charts out.
Not here: what a report says (report.py), drawing (svg_chart.py).
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from edge_agent import __version__, json_lines
from edge_agent.bench.report import NOT_MEASURED, Report, Section, Table

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html(report: Report, style: str) -> str:
    """The page. `style` is the text of report.css."""
    title = escape(report.title)
    facts = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in report.facts)
    body = "".join(_section(section) for section in report.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body>"
        f"<header><h1>{title}</h1><p>Made {escape(report.made_at)} by edge-agent {__version__}.</p>"
        f"<dl>{facts}</dl></header><main>{body}{_raw(report)}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.text]
    parts += [_table(table) for table in section.tables]
    parts += [f"<figure>{_captioned(chart)}</figure>" for chart in section.charts if chart]
    return "".join(parts) + "</section>"


def _captioned(chart: str) -> str:
    """The chart below a visible caption, which is the chart's own title."""
    caption = chart.partition("<title>")[2].partition("</title>")[0]
    return f"<figcaption>{caption}</figcaption>{chart}"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.headers)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">'
        f"<table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>" + (f"<ul>{notes}</ul>" if notes else "")
    )


def _cell(text: str) -> str:
    kind = ' class="none"' if text in (NOT_MEASURED, "not told", "-") else ""
    return f"<td{kind}>{escape(text)}</td>"


def _raw(report: Report) -> str:
    """Every document as it is, for a reader who wants to compute something else."""
    text = "\n".join(json_lines.dumps(one) for one in report.documents)
    summary = f"<summary>All figures: {len(report.documents)} documents, one JSON a line</summary>"
    return f"<details>{summary}<pre>{escape(text)}</pre></details>"


def markdown(report: Report) -> str:
    """The same tables and sentences as Markdown, without charts."""
    parts = [f"# {_text(report.title)}", f"Made {report.made_at}."]
    parts += [f"- **{_text(name)}**: {_text(value)}" for name, value in report.facts]
    for section in report.sections:
        parts += _markdown_section(section)
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: list[str]) -> list[str]:
    """Put consecutive list items into one part, so that no blank line separates them."""
    out: list[str] = []
    for part in parts:
        if part.startswith("- ") and out and out[-1].startswith("- "):
            out[-1] += "\n" + part
        else:
            out.append(part)
    return out


def _markdown_section(section: Section) -> list[str]:
    parts = [f"## {_text(section.title)}", *(_text(text) for text in section.text)]
    for table in section.tables:
        parts += [f"**{_text(table.caption)}**", _markdown_table(table)]
        parts += [f"- {_text(note)}" for note in table.notes]
    return parts


def _markdown_table(table: Table) -> str:
    rows = [table.headers, tuple("---" for _ in table.headers), *table.rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(value: str) -> str:
    """Escape Markdown: names come from files of strangers and must not become markup."""
    clean = " ".join(value.split())
    for mark in ("\\", "`", "*", "_", "[", "]", "<", ">", "|"):
        clean = clean.replace(
            mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark]
        )
    return clean
