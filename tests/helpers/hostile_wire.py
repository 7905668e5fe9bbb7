"""Hostile framing: sizes, headers, request lines, media types, hosts, tokens, paths."""

from __future__ import annotations

import gzip
from collections.abc import Callable

from hostile_case import Case, Target, head, post

TEXT = "/v1/completions"
BODY = b'{"prompt":"x","max_tokens":1}'
JSON: dict[str, str | None] = {"Content-Type": "application/json"}
BAD = frozenset({400})
Request = Callable[[Target], bytes]


def _with_head(fields: bytes, body: bytes = BODY) -> Request:
    """A POST whose last header fields and body are given as bytes."""
    return lambda target: head(target, f"POST {TEXT}", {**JSON})[:-2] + fields + b"\r\n" + body


def _framing(kind: str, rows: list[tuple[str, bytes, bytes]]) -> list[Case]:
    return [
        Case(kind, name, _with_head(fields, body), BAD, broken_http=True)
        for name, fields, body in rows
    ]


def _chunks(kind: str, rows: list[tuple[str, bytes]]) -> list[Case]:
    chunked = b"Transfer-Encoding: chunked\r\n"
    return _framing(kind, [(name, chunked, body) for name, body in rows])


def _lines(kind: str, rows: list[tuple[str, Request, set[int]]]) -> list[Case]:
    return [
        Case(kind, name, request, frozenset(allowed), broken_http=True)
        for name, request, allowed in rows
    ]


def _bytes(raw: bytes) -> Request:
    return lambda target: raw


def _get(line: str, fields: dict[str, str | None] | None = None) -> Request:
    return lambda target: head(target, line, fields)


def _media(name: str, fields: dict[str, str | None], body: bytes = BODY) -> Case:
    return Case("media_types", name, post(TEXT, body, fields), frozenset({415}))


def _prompt_of(size: int) -> bytes:
    return b'{"max_tokens":1,"prompt":"' + b"x" * size + b'"}'


def _chunked_body(pieces: int) -> Request:
    body = (b"10000\r\n" + b" " * 65536 + b"\r\n") * pieces + b"0\r\n\r\n"
    return _with_head(b"Transfer-Encoding: chunked\r\n", body)


CLAIMED = [5_000_000, 10**9, 2**31, 2**32, 2**53, 2**62]
LENGTH = b"Content-Length: 29\r\n"
SIZES = [
    *[
        Case(
            "oversize",
            f"claims {size}",
            _with_head(b"Content-Length: %d\r\n" % size, b""),
            frozenset({413}),
        )
        for size in CLAIMED
    ],
    Case("oversize", "5 MB sent", post(TEXT, _prompt_of(5_000_000)), frozenset({413})),
    Case("oversize", "50 MB sent", post(TEXT, _prompt_of(50_000_000)), frozenset({413})),
    Case("oversize", "5 MB in chunks", _chunked_body(80), frozenset({413})),
    Case("oversize", "1 MB prompt", post(TEXT, _prompt_of(1_000_000)), frozenset({400, 413})),
]

FRAMING = [
    *_framing(
        "lengths",
        [
            ("length and chunked", LENGTH + b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
            ("chunked and length", b"Transfer-Encoding: chunked\r\n" + LENGTH, b"0\r\n\r\n"),
            ("two lengths", LENGTH + b"Content-Length: 5\r\n", BODY),
            ("list of lengths", b"Content-Length: 29, 5\r\n", BODY),
            ("negative", b"Content-Length: -1\r\n", BODY),
            ("letters", b"Content-Length: abc\r\n", BODY),
            ("plus", b"Content-Length: +29\r\n", BODY),
            ("hexadecimal", b"Content-Length: 0x1d\r\n", BODY),
            ("space before colon", b"Content-Length : 29\r\n", BODY),
            ("unknown transfer coding", b"Transfer-Encoding: xchunked\r\n", BODY),
        ],
    ),
    *_chunks(
        "chunk_sizes",
        [
            ("letters", b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("negative", b"-1\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("plus", b"+1d\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("0x", b"0x1d\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("overflow", b"f" * 17 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("too short", b"5\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("empty", b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("space", b"1 d\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("bare newlines", b"1d\n" + BODY + b"\n0\n\n"),
            ("underscore", b"1_d\r\n" + BODY + b"\r\n0\r\n\r\n"),
        ],
    ),
]


def _field(raw: bytes) -> Request:
    """GET /v1/models with raw header bytes before the blank line."""
    return lambda target: head(target, "GET /v1/models")[:-2] + raw + b"\r\n"


def _with_token(target: Target, token: str) -> bytes:
    return head(target, "GET /status", {"Authorization": f"Bearer {token}"})


def _numbered(count: int, size: int) -> Request:
    """`count` header fields of `size` bytes."""
    return _field(b"".join(b"X-%d: %b\r\n" % (n, b"a" * size) for n in range(count)))


LONG = {400, 431}
HEADERS = _lines(
    "headers",
    [
        ("one of 64 KiB", _field(b"X-A: " + b"a" * 65_536 + b"\r\n"), LONG),
        ("1,000 of them", _numbered(1000, 1), LONG),
        ("100 of them", _numbered(100, 1), LONG),
        ("20 KiB in sum", _numbered(5, 4000), {431}),
        ("NUL in a value", _field(b"X-A: a\0b\r\n"), {400}),
        ("no colon", _field(b"nonsense\r\n"), {400}),
        ("space in a name", _field(b"X A: a\r\n"), {400}),
        ("non-ASCII name", _field("Ünicode: a\r\n".encode()), {400}),
        ("bare carriage return", _field(b"X-A: a\rX-B: b\r\n"), {400}),
        ("control character", _field(b"X-A: a\x01b\r\n"), {400}),
    ],
)
LINES = _lines(
    "request_lines",
    [
        ("HTTP/0.9", _bytes(b"GET /\r\n\r\n"), {400}),
        ("HTTP/2 preface", _bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), {400, 421}),
        ("HTTP/9.9", lambda t: head(t, "GET /v1/models").replace(b"HTTP/1.1", b"HTTP/9.9"), {400}),
        ("no version", lambda t: head(t, "GET /v1/models").replace(b" HTTP/1.1", b""), {400}),
        ("TLS hello", _bytes(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), {400}),
        ("absolute foreign", _get("GET http://evil/v1/models"), {400}),
        ("absolute own", _get("GET http://127.0.0.1/v1/models"), {400}),
        ("CONNECT", _get("CONNECT evil:443"), {400}),
        ("OPTIONS *", _get("OPTIONS *"), {400}),
        ("16 KiB of path", _get("GET /" + "a" * 16_384), {400, 414, 431}),
    ],
)
MEDIA = [
    Case(
        "media_types",
        "form",
        post(TEXT, b"prompt=x", {"Content-Type": "application/x-www-form-urlencoded"}),
        frozenset({400}),
    ),
    _media("multipart", {"Content-Type": "multipart/form-data; boundary=b"}, b"--b--\r\n"),
    _media("xml", {"Content-Type": "application/xml"}, b"<prompt/>"),
    _media("gzip", {"Content-Encoding": "gzip"}, gzip.compress(BODY)),
    _media("gzip bomb", {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10_000_000)),
    _media("brotli", {"Content-Encoding": "br"}),
    _media("latin-1", {"Content-Type": "application/json; charset=latin-1"}),
    _media("nearly", {"Content-Type": "application/jsonx"}),
    _media("UTF-16", {"Content-Type": "text/plain; charset=utf-16"}),
    _media("a page's form", {"Content-Type": "multipart/form-data"}),
]
HOSTS = [
    *[
        Case("hosts", f"Host {host}", _get("GET /health", {"Host": host}), frozenset({421}))
        for host in ("evil", "127.0.0.1.evil", "localhost:80@x", "", "localhost.", "0.0.0.0")
    ],
    *[
        Case(
            "hosts",
            f"Origin {origin}",
            _get("GET /v1/models", {"Origin": origin}),
            frozenset({403}),
        )
        for origin in ("http://evil", "null")
    ],
    *_lines(
        "hosts",
        [
            ("no Host", _get("GET /health", {"Host": None}), {400}),
            ("two Hosts", _field(b"Host: localhost\r\n"), {400}),
        ],
    ),
]
UNKNOWN = frozenset({401})
TOKENS = [
    *[
        Case("tokens", str(value), _get("GET /v1/models", {"Authorization": value}), UNKNOWN)
        for value in (None, "", "Bearer", "Bearer ", "Bearer x", "Basic x", "Bearer null")
    ],
    Case("tokens", "short", lambda t: _with_token(t, t.token[:-1]), UNKNOWN),
    Case("tokens", "long", lambda t: _with_token(t, t.token + "0"), UNKNOWN),
    Case(
        "tokens",
        "in the query",
        lambda t: head(t, f"GET /status?token={t.token}", {"Authorization": None}),
        UNKNOWN,
    ),
]
NOT_FOUND, NOT_ALLOWED = frozenset({404}), frozenset({405})
PATHS = [
    *[
        Case("paths", line, _get(line), NOT_FOUND)
        for line in ("GET /v1/models/..%2f..%2fetc%2fpasswd", "GET /v1/models/%2e%2e", "GET /v1")
    ],
    *[
        Case("paths", line, _get(line), NOT_FOUND)
        for line in ("GET //etc/passwd", "GET /v1/models/a%00b", "GET /v1/models/%ff", "GET /.git")
    ],
    *[
        Case("paths", line, _get(line), NOT_ALLOWED)
        for line in ("DELETE /v1/models", "GET /v1/completions", "TRACE /status")
    ],
]
CONTINUE: dict[str, str | None] = {"Expect": "100-continue"}
EXPECTATIONS = [
    *[
        Case("expectations", value, post(TEXT, BODY, {"Expect": value}), frozenset({417}))
        for value in ("nonsense", "200-ok", "100", "100-continue, x", "x" * 200)
    ],
    *[
        Case("expectations", f"{path} {body!r}", post(path, body, CONTINUE), frozenset({status}))
        for path, body, status in (
            (TEXT, b"{}", 400),
            (TEXT, b"[]", 400),
            (TEXT, b"\xff", 400),
            ("/v1/none", BODY, 404),
            ("/v1/models", BODY, 405),
        )
    ],
]

CASES = [*SIZES, *FRAMING, *HEADERS, *LINES, *MEDIA, *HOSTS, *TOKENS, *PATHS, *EXPECTATIONS]
