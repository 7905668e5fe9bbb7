"""A report as Markdown: the same tables, for an issue or a repository.

Flows in: a Report. Flows out: text; pictures are left out. Not here: what stands in it (report.py).
"""

from __future__ import annotations

from edge_agent.bench.report import Report, Section, Table


def markdown(report: Report) -> str:
    parts = [f"# {_text(report.title)}", f"Made {report.made_at}."]
    parts += [f"- **{_text(name)}**: {_text(value)}" for name, value in report.facts]
    for section in report.sections:
        parts += _section(section)
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: list[str]) -> list[str]:
    """List items stay together."""
    out: list[str] = []
    for part in parts:
        if part.startswith("- ") and out and out[-1].startswith("- "):
            out[-1] += "\n" + part
        else:
            out.append(part)
    return out


def _section(section: Section) -> list[str]:
    parts = [f"## {_text(section.title)}", *(_text(text) for text in section.text)]
    for table in section.tables:
        parts += [f"**{_text(table.caption)}**", _table(table)]
        parts += [f"- {_text(note)}" for note in table.notes]
    return parts


def _table(table: Table) -> str:
    rows = [table.headers, tuple("---" for _ in table.headers), *table.rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(value: str) -> str:
    """Names come from files of strangers: nothing in them may become markup."""
    clean = " ".join(value.split())
    for mark in ("\\", "`", "*", "_", "[", "]", "<", ">", "|"):
        clean = clean.replace(
            mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark]
        )
    return clean
