"""One row of the API, from which app.py registers the path and openapi.py describes it.

Flows in: method, path, handler and models, as the API modules list them in ROUTES. Flows out: a
Route. Not here: the handlers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One method of one path.

    `answer` None: the answer is an empty or plain-text 200. `streams`: content type, and model of
    one piece. `query`: names of query parameters.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    streams: tuple[str, type[BaseModel]] | None = None
    query: tuple[str, ...] = ()
