"""How a row ended: every row has exactly one of these words as its `status`.

An HTTP answer other than 200 is `http_<code>`. The engine adds `lost` (a file was corrupted on disk), `quarantined`,
and `taken_down`, which nothing tries again.
"""

import re

SUCCESS = "success"

BEFORE_DECODING = frozenset(
    {
        "bad_url",  # not a URL that can be fetched: no host, a bad port, credentials in it
        "blocked_scheme",  # neither http nor https
        "blocked_port",  # neither 80 nor 443, and not allowed by name
        "blocked_address",  # the host is, or resolves to, an address that is not public
        "dns_error",
        "connection_error",
        "tls_error",
        "timeout",
        "too_many_redirects",
        "opted_out",  # the host's headers reserve the image, or a list of ours names its domain or URL
        "robots_disallowed",
        "robots_unreachable",  # robots.txt is there, or may be, and could not be had: nothing may be asked for
        "host_busy",  # the host's turn did not come within `wait_s`
        "blocked_hash",  # a list of ours names the file or the picture
        "hash_mismatch",  # the content has changed since it was first seen
        "too_large",
        "truncated_body",
        "empty",
        "bad_encoding",  # a Content-Encoding that was not asked for and is neither gzip nor deflate, or is broken
    }
)
IN_DECODING = frozenset(
    {
        "not_an_image",
        "format_refused",  # an image, but neither JPEG, PNG, WebP nor GIF
        "too_many_pixels",
        "truncated_image",
        "decode_error",
        "decode_timeout",
        "decoder_crash",
        "oom",
    }
)
ENGINE = frozenset({"lost", "quarantined"})

FIXED = frozenset({SUCCESS}) | BEFORE_DECODING | IN_DECODING
"""Every status that this stage gives, but for `http_<code>`."""

HTTP = re.compile(r"http_[0-9]{3}")


def is_status(word: str) -> bool:
    """Whether the stage may end a row with `word`."""
    return word in FIXED or HTTP.fullmatch(word) is not None


def passing(code: int) -> bool:
    """Whether an HTTP code says that the same request may succeed later."""
    return code in (408, 425, 429) or 500 <= code <= 599


RETRYABLE = (
    ENGINE
    | frozenset({"host_busy", "robots_unreachable"})
    | frozenset({"timeout", "dns_error", "connection_error", "tls_error", "truncated_body"})
    | frozenset({"decode_timeout", "decoder_crash", "oom"})  # a loaded or a small machine may be the cause
    | frozenset(f"http_{code}" for code in range(400, 600) if passing(code))
)
"""Statuses that another run may change."""


class FetchError(Exception):
    """A row's end other than success.

    `again`: whether another try in this run is worth its time. `pause_s`: what the host asked for with Retry-After.
    """

    def __init__(self, status: str, message: str, again: bool = False, pause_s: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.again = again
        self.pause_s = pause_s
