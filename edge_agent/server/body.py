"""Reads a request body, bounded in type, size, time and nesting, and parses it as strict JSON.

Flows in: an aiohttp request and the limits. Flows out: a dict of plain JSON values, or a typed
refusal. Python's own json accepts NaN, duplicate keys, lone surrogates and any depth (measured);
none of them may reach a model or the database. Not here: what the fields mean (*_schema.py).
"""

from __future__ import annotations

import asyncio
import codecs
import json
import math
from typing import Any, NoReturn, TypeVar

from aiohttp import web
from aiohttp.web_request import BaseRequest
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edge_agent.errors import RequestError
from edge_agent.server.auth import showed_secret
from edge_agent.server.error_body import FieldError, Refusal
from edge_agent.server.limits import Limits

BARE_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
"""What clients send without a thought (curl -d, urllib, no header at all: aiohttp reads that as the
first), read as JSON from a sender that `showed_secret`."""
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
MAX_INTEGER_DIGITS = 20
"""Enough for any 64-bit integer; Python's own limit is 4,300 digits."""

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: BaseRequest, limit_bytes: int, deadline_s: float) -> bytes:
    """The whole body. Raises Refusal (408, 413, 415), and RequestError for broken chunking."""
    _check_type(request)
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes, f"Content-Length says {request.content_length} bytes")
    try:
        return await asyncio.wait_for(_receive(request, limit_bytes), deadline_s)
    except asyncio.TimeoutError:
        raise Refusal(
            408,
            "request_timeout",
            "the request body did not arrive",
            f"it was still incomplete after {deadline_s:g} s",
            "send the body at once, with its Content-Length",
        ) from None
    except web.RequestPayloadError as error:
        raise RequestError("the request body cannot be read", str(error)) from None


async def _receive(request: BaseRequest, limit_bytes: int) -> bytes:
    if request.headers.get("Expect") and request.transport:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    received = bytearray()
    async for piece in request.content.iter_any():
        received += piece
        if len(received) > limit_bytes:
            raise _too_large(limit_bytes, "more than that was sent")
    return bytes(received)


def _check_type(request: BaseRequest) -> None:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise Refusal(
            415,
            "unsupported_encoding",
            f"Content-Encoding {encoding[:40]!r} is not accepted",
            "bodies are read as they are",
            "send the JSON uncompressed",
        )
    sent = request.headers.get("Content-Type", "none")
    if not _is_json(request.content_type) and not (
        showed_secret(request) and request.content_type in BARE_TYPES
    ):
        raise Refusal(
            415,
            "unsupported_media_type",
            f"Content-Type {sent[:80]!r} is not accepted",
            "it does not say JSON"
            if showed_secret(request)
            else "without a token, JSON's own type keeps out the pages of other sites",
            "send the header 'Content-Type: application/json'",
        )
    if (request.charset or "utf-8").lower() not in CHARSETS:
        raise Refusal(
            415,
            "unsupported_media_type",
            f"Content-Type {sent[:80]!r} is not accepted",
            "JSON is UTF-8 (RFC 8259)",
            "send UTF-8, and the header 'Content-Type: application/json'",
        )


def _is_json(content_type: str) -> bool:
    """Whether a media type says JSON, also by the suffix of RFC 6839. A browser asks for permission
    before it sends any of these to another origin (CORS-safelisted types are others)."""
    kind, _, name = content_type.partition("/")
    return content_type == "text/json" or (
        kind == "application" and (name == "json" or name.endswith("+json"))
    )


def _too_large(limit_bytes: int, why: str) -> Refusal:
    return Refusal(
        413,
        "request_too_large",
        f"the request body is larger than {limit_bytes} bytes",
        why,
        "shorten the prompt; the limit grows with the largest context of a model",
    )


def parse_json(body: bytes, max_depth: int) -> dict[str, Any]:
    """A JSON object as a dict. Raises RequestError for anything that a strict parser would refuse,
    but for a byte order mark before it.

    >>> parse_json(b'{"n": 1}', 64)
    {'n': 1}
    """
    value = _parse(body, max_depth)
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object", f"it is a {type(value).__name__}")
    return value


def parse_json_list(body: bytes, max_depth: int) -> list[Any]:
    """A JSON array, for an API that wants one. Raises RequestError as parse_json does."""
    value = _parse(body, max_depth)
    if not isinstance(value, list):
        raise RequestError("the body is not a JSON array", f"it is a {type(value).__name__}")
    return value


def _parse(body: bytes, max_depth: int) -> Any:
    try:
        value = json.loads(
            body.removeprefix(codecs.BOM_UTF8).decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
            object_pairs_hook=_unique_keys,
        )
    except UnicodeDecodeError as error:
        raise RequestError("the body is not UTF-8", f"byte {error.start} is invalid") from None
    except json.JSONDecodeError as error:
        why = str(error) if body.strip() else "it is empty"
        raise RequestError("the body is not JSON", why) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    _check_tree(value, max_depth)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError("the body is not JSON", f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RequestError("a number is out of range", f"{text[:40]} is not finite as a double")
    return value


def _short_int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise RequestError(
            "a number is out of range", f"an integer of {len(text)} digits, {text[:10]}..."
        )
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise RequestError("a key appears twice in one object", repr(twice[:80]))


def _check_tree(root: Any, max_depth: int) -> None:
    """Refuse too much depth, and strings that UTF-8 or C could not carry.

    Iterative, because a recursive walk of a hostile tree would exhaust the stack.
    """
    level: list[Any] = [root]
    for _ in range(max_depth):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        level = below
    raise _too_deep(max_depth)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise RequestError("a string holds the character NUL", repr(text[:40]))
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            "a string is not Unicode text", f"lone surrogate at character {error.start}"
        ) from None


def _too_deep(max_depth: int) -> RequestError:
    return RequestError("the body is nested too deeply", f"more than {max_depth} levels")


def validate(model: type[Model], members: dict[str, Any]) -> Model:
    """`members` as a checked request model. Raises FieldError that names the first wrong field."""
    try:
        return model.model_validate(members)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_input=False)
        raise _field_error([(_field_path(one, members), one) for one in errors]) from None


def _field_error(errors: list[tuple[list[str], ErrorDetails]]) -> FieldError:
    """The error of the first field that is wrong, `errors` being (path, error) each.

    A union fails once in each of its branches. The branch that got furthest says what is wrong;
    where none got further than the type of the value, all of them say what it may be.
    """
    first = errors[0][0]
    union = [(path, one) for path, one in errors if path[: len(first)] == first[: len(path)]]
    path, told = max(union, key=lambda both: (not _is_mismatch(both[1]), len(both[0])))
    context, messages = told.get("ctx", {}), [told["msg"]]
    if _is_mismatch(told):
        messages = [one["msg"] for where, one in union if where == path]
    message = " or ".join(dict.fromkeys(messages)).replace(" or Input should be ", " or ")
    param = context.get("param")
    if param is not None and path[-1:] != [param]:
        path = [*path, param]
    return FieldError(".".join(path), message, context.get("hint", ""))


def _is_mismatch(error: ErrorDetails) -> bool:
    return error["type"].endswith("_type") or error["type"] == "literal_error"


def _field_path(error: ErrorDetails, members: Any) -> list[str]:
    """`messages`, `0`, `role`: pydantic's location without the names of union branches."""
    path: list[str] = []
    for part in error["loc"]:
        if isinstance(members, dict) and part in members:
            members = members[part]
        elif isinstance(members, list) and part in range(len(members)):
            members = members[int(part)]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        path.append(str(part))
    return path


async def read_request(
    request: BaseRequest, model: type[Model], limits: Limits, n_ctx: int
) -> Model:
    """Read, parse and validate the body: the first step of every POST handler.

    `n_ctx` is the largest context that a request can have; it bounds the size. Raises what
    read_body, parse_json and validate raise.
    """
    body = await read_body(request, limits.body_bytes(n_ctx), limits.body_s)
    return validate(model, parse_json(body, limits.json_depth))
