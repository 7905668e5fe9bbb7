"""Every bound that the HTTP layer puts on a client, in one record, so that tests can shorten times.

Flows in: nothing. Flows out: Limits, which the body reader, the streams and the runner read. A slow
client must be disconnected within 10 s of its last progress; therefore its deadlines are a little
below 10 s. Not here: bounds of single fields (*_schema.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    header_bytes: int = 16 * 1024
    """The most bytes of request line and header fields together; more is refused with 431."""
    header_fields: int = 64
    header_s: float = 8.0
    """From the connection, or the last response, to the end of the next request's headers."""
    body_s: float = 8.0
    """From the end of the headers to the last byte of the body; longer is refused with 408."""
    linger_s: float = 1.0
    """How long the rest of a refused body is read and dropped, so that the client can read the
    refusal."""
    body_floor_bytes: int = 256 * 1024
    body_ceiling_bytes: int = 4 * 1024 * 1024
    body_bytes_per_token: int = 32
    """A prompt of n_ctx tokens must fit: about 4 characters a token, of up to 3 bytes (Indic
    scripts) or 6 (JSON escapes)."""
    json_depth: int = 64
    write_buffer_bytes: int = 64 * 1024
    """The most unsent bytes for one reader in our buffer, and the same again in the kernel's."""
    drain_s: float = 30.0
    """How long a reader may stop reading before its connection is dropped."""

    def body_bytes(self, n_ctx: int) -> int:
        """The largest request body in bytes, for the largest context that a request can have."""
        wanted = self.body_bytes_per_token * n_ctx
        return min(max(self.body_floor_bytes, wanted), self.body_ceiling_bytes)
