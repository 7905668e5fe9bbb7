"""Every bound the HTTP layer puts on a client, in one record so that tests can shrink the clocks.

Flows in: nothing. Flows out: `Limits`, read by the body reader, the streams and the runner. A slow
client must be gone within 10 s of its last progress, hence deadlines a little below 10.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, clocks in seconds."""

    header_bytes: int = 16 * 1024
    """Request line and header fields together; more is 431."""
    header_fields: int = 64
    header_s: float = 8.0
    """From connect, or from the last response, to the end of the next request's headers."""
    body_s: float = 8.0
    """From the end of the headers to the last byte of the body; then 408."""
    linger_s: float = 1.0
    """How long the unread rest of a refused body is swallowed, so that the refusal gets through."""
    body_floor_bytes: int = 256 * 1024
    body_ceiling_bytes: int = 4 * 1024 * 1024
    body_bytes_per_token: int = 32
    """A prompt of n_ctx tokens has to fit: about 4 characters a token, escapes and long scripts."""
    json_depth: int = 64
    write_buffer_bytes: int = 64 * 1024
    """Unsent bytes kept for one reader, in our buffer and once more in the kernel's."""
    drain_s: float = 30.0
    """How long one reader may refuse to read before its connection is dropped."""

    def body_bytes(self, n_ctx: int | None) -> int:
        """The largest request body, given the loaded model's context (None: nothing loaded)."""
        wanted = self.body_bytes_per_token * (n_ctx or 0)
        return min(max(self.body_floor_bytes, wanted), self.body_ceiling_bytes)
