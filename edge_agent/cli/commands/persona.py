"""--system: a persona given as text or as the name of a file holding it.

Flows in: the flag's value. Flows out: the system prompt. An existing file is read; a value that
looks like a file name but is none is an error, because sending the misspelt name as the persona
would go unnoticed.
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.errors import UsageError

MAX_PERSONA_BYTES = 1024 * 1024


def system_prompt(value: str | None) -> str:
    """Text, or the stripped text of the file `value` names; "" for None. Raises UsageError."""
    if not value:
        return ""
    path = Path(value).expanduser() if value.startswith("~") else Path(value)
    if not _is_file(path):
        if _looks_like_a_file(value):
            hint = "correct the path, or write the persona as a sentence"
            raise UsageError(f"no system prompt file {value}", "there is no such file", hint)
        return value
    return read_text(path).strip()


def read_text(path: Path) -> str:
    """A small UTF-8 file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PERSONA_BYTES + 1)
        if len(data) > MAX_PERSONA_BYTES:
            raise UsageError(
                f"{path} is too long", f"more than {MAX_PERSONA_BYTES} bytes", "shorten it"
            )
        return data.decode()
    except OSError as error:
        raise UsageError(f"cannot read {path}", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        raise UsageError(f"cannot read {path}", why, "save it as UTF-8 text") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # A sentence longer than a file name may be, or one with a NUL: it is the text itself.
        return False


def _looks_like_a_file(value: str) -> bool:
    """One word with a slash or a suffix: `persona.txt`, `./x`; not `Be brief.`"""
    return " " not in value and "\n" not in value and ("/" in value or "." in value.rstrip("."))
