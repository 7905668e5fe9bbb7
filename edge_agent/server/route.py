"""One row of the API: what app.py registers and what /openapi.json describes, from one place.

Flows in: the ROUTES tuples of the API modules. Flows out: read by app.py and openapi.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """`answer` None: an empty or plain-text 200. `streams`: content type and model of one piece."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    streams: tuple[str, type[BaseModel]] | None = None
    query: tuple[str, ...] = ()
