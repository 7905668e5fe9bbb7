"""Refusals that exist only in HTTP: who is asking, how it was framed, which field is wrong.

Flows in: status, stable code and the three parts of every error. Flows out: exceptions that
`error_body.py` turns into the body each API's clients expect. Errors that the CLI can meet too
live in edge_agent/errors.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.errors import EdgeAgentError, RequestError


class Refusal(EdgeAgentError):
    """An HTTP request turned away before any model saw it."""

    def __init__(self, status: int, code: str, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.status = status
        self.code = code
        self.headers: Mapping[str, str] = {}

    def with_headers(self, headers: Mapping[str, str]) -> Refusal:
        """The same refusal, to be sent with these response headers."""
        self.headers = headers
        return self


class FieldError(RequestError):
    """A field of a request body that cannot be. `param` is its path, as in `messages.0.role`."""

    def __init__(self, param: str, why: str, hint: str = "") -> None:
        super().__init__(f"field '{param}' is not valid" if param else "invalid body", why, hint)
        self.param = param
