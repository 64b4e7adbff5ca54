"""What can be wrong with a page: every page is of exactly one kind, so that each kind can be graded alone.

A new kind is a member of `Kind`, a line in `FACTS`, its shares in `mixes`, and what it does in `plan` or `answers`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What was planted on a page. No address tells it, but for the hosts and folders that a kind is about."""

    # Nothing is wrong; some need patience or a careful decoder.
    CLEAN = "clean"
    LOOK_ALIKE = "look_alike"
    """The image of another page with exactly one attribute changed, and a caption that is true of it: no copy."""
    REPEATED_URL = "repeated_url"
    """The address of another page's image, with another true caption."""
    REDIRECT = "redirect"
    """302 to where the image is."""
    SLOW = "slow"
    """The whole image, in dribbles, within a second."""
    FLAKY = "flaky"
    """5xx to the first one or two requests, then the image."""
    RATE_LIMITED = "rate_limited"
    """429 with `Retry-After: 1` to the first request, then the image."""
    SMUGGLED = "smuggled"
    """More bytes than the Content-Length says: the image is whole, what follows looks like another answer."""
    CMYK = "cmyk"
    DEEP = "deep"
    """A PNG of 16 bits per channel."""
    PALETTE_ALPHA = "palette_alpha"
    ANIMATED_GIF = "animated_gif"
    ANIMATED_WEBP = "animated_webp"
    ROTATED = "rotated"
    """A JPEG that lies on its side or stands on its head, and the EXIF orientation that turns it upright."""
    POLYGLOT = "polyglot"
    """A JPEG with a zip archive behind it."""

    # The image is fine, the caption is not.
    MISMATCH = "mismatch"
    """The caption of another page, whose image shows the same classes of objects."""
    BOILERPLATE = "boilerplate"
    SPAM = "spam"
    OTHER_LANGUAGE = "other_language"
    TRUNCATED_CAPTION = "truncated_caption"

    # The image is not worth keeping.
    TINY = "tiny"
    """Both sides below 64 px."""
    BANNER = "banner"
    """Four times as wide as high, or more."""
    PLACEHOLDER = "placeholder"
    """One and the same "image not available" under many addresses, with status 200."""

    # The image is there already.
    EXACT_COPY = "exact_copy"
    REENCODED_COPY = "reencoded_copy"
    RESIZED_COPY = "resized_copy"
    CROPPED_COPY = "cropped_copy"
    RECOLOURED_COPY = "recoloured_copy"

    # The image belongs to the evaluation set.
    EXACT_LEAK = "exact_leak"
    ALTERED_LEAK = "altered_leak"

    # No image is to be had.
    NO_URL = "no_url"
    BAD_NAME = "bad_name"
    """A host that does not exist."""
    HANG_UP = "hang_up"
    """The connection is closed without an answer."""
    NOT_FOUND = "not_found"
    GONE = "gone"
    SERVER_ERROR = "server_error"
    HTML = "html"
    """A web page under the name of an image."""
    EMPTY = "empty"
    TRUNCATED_IMAGE = "truncated_image"
    """The first 60 % of a JPEG, sent as if they were the whole."""

    CHANGED = "changed"
    """Another image than the caption tells of, and another sha256 than the table gives: an address that was resold."""

    # It must not be had.
    NOAI = "noai"
    NOIMAGEAI = "noimageai"
    TDM_RESERVED = "tdm_reserved"
    DISALLOWED = "disallowed"
    """robots.txt disallows the folder."""
    ROBOTS_BROKEN = "robots_broken"
    """A host whose robots.txt answers 503."""
    BLOCKED_ADDRESS = "blocked_address"
    """The table itself names an address that is not public."""
    REDIRECT_TO_METADATA = "redirect_to_metadata"
    REDIRECT_TO_FILE = "redirect_to_file"
    REDIRECT_TO_FTP = "redirect_to_ftp"

    # It is meant to harm.
    STALLED = "stalled"
    """A byte a second, for ever."""
    ENDLESS = "endless"
    GZIP_BOMB = "gzip_bomb"
    REDIRECT_LOOP = "redirect_loop"
    LENGTH_TOO_LONG = "length_too_long"
    BAD_TLS = "bad_tls"
    """https, to a port that speaks none."""
    SVG = "svg"
    """With a script in it."""
    PNG_BOMB = "png_bomb"
    """20,000 x 20,000 px in 138 bytes or so."""
    PNG_NEAR_BOMB = "png_near_bomb"
    """49 megapixels of one colour, just under the usual limit: it may be decoded, but shows nothing."""


class Family(StrEnum):
    """Kinds that are planned and read together."""

    SOUND = "sound"
    CAPTION = "caption"
    IMAGE = "image"
    COPY = "copy"
    LEAK = "leak"
    DEAD = "dead"
    FORBIDDEN = "forbidden"
    HARMFUL = "harmful"


@dataclass(frozen=True)
class Facts:
    """What holds for every page of a kind.

    `ends`: the status with which a careful download ends, None where the page has no row in a pool; a second word where
    both are right.
    """

    family: Family
    ends: tuple[str, ...] = ("success",)

    @property
    def damaged(self) -> bool:
        """Whether a curated set is better without the pair."""
        return self.family is not Family.SOUND


FACTS: dict[Kind, Facts] = {
    Kind.CLEAN: Facts(Family.SOUND),
    Kind.LOOK_ALIKE: Facts(Family.SOUND),
    Kind.REPEATED_URL: Facts(Family.SOUND),
    Kind.REDIRECT: Facts(Family.SOUND),
    Kind.SLOW: Facts(Family.SOUND),
    Kind.FLAKY: Facts(Family.SOUND),
    Kind.RATE_LIMITED: Facts(Family.SOUND),
    Kind.SMUGGLED: Facts(Family.SOUND),
    Kind.CMYK: Facts(Family.SOUND),
    Kind.DEEP: Facts(Family.SOUND),
    Kind.PALETTE_ALPHA: Facts(Family.SOUND),
    Kind.ANIMATED_GIF: Facts(Family.SOUND),
    Kind.ANIMATED_WEBP: Facts(Family.SOUND),
    Kind.ROTATED: Facts(Family.SOUND),
    Kind.POLYGLOT: Facts(Family.SOUND),
    Kind.MISMATCH: Facts(Family.CAPTION),
    Kind.BOILERPLATE: Facts(Family.CAPTION),
    Kind.SPAM: Facts(Family.CAPTION),
    Kind.OTHER_LANGUAGE: Facts(Family.CAPTION),
    Kind.TRUNCATED_CAPTION: Facts(Family.CAPTION),
    Kind.TINY: Facts(Family.IMAGE),
    Kind.BANNER: Facts(Family.IMAGE),
    Kind.PLACEHOLDER: Facts(Family.IMAGE),
    Kind.EXACT_COPY: Facts(Family.COPY),
    Kind.REENCODED_COPY: Facts(Family.COPY),
    Kind.RESIZED_COPY: Facts(Family.COPY),
    Kind.CROPPED_COPY: Facts(Family.COPY),
    Kind.RECOLOURED_COPY: Facts(Family.COPY),
    Kind.EXACT_LEAK: Facts(Family.LEAK),
    Kind.ALTERED_LEAK: Facts(Family.LEAK),
    Kind.NO_URL: Facts(Family.DEAD, ()),
    Kind.BAD_NAME: Facts(Family.DEAD, ("dns_error",)),
    Kind.HANG_UP: Facts(Family.DEAD, ("connection_error",)),
    Kind.NOT_FOUND: Facts(Family.DEAD, ("http_404",)),
    Kind.GONE: Facts(Family.DEAD, ("http_410",)),
    Kind.SERVER_ERROR: Facts(Family.DEAD, ("http_500",)),
    Kind.HTML: Facts(Family.DEAD, ("not_an_image",)),
    Kind.EMPTY: Facts(Family.DEAD, ("empty",)),
    Kind.TRUNCATED_IMAGE: Facts(Family.DEAD, ("truncated_image",)),
    Kind.CHANGED: Facts(Family.DEAD, ("hash_mismatch",)),
    Kind.NOAI: Facts(Family.FORBIDDEN, ("opted_out",)),
    Kind.NOIMAGEAI: Facts(Family.FORBIDDEN, ("opted_out",)),
    Kind.TDM_RESERVED: Facts(Family.FORBIDDEN, ("opted_out",)),
    Kind.DISALLOWED: Facts(Family.FORBIDDEN, ("robots_disallowed",)),
    Kind.ROBOTS_BROKEN: Facts(Family.FORBIDDEN, ("robots_unreachable",)),
    Kind.BLOCKED_ADDRESS: Facts(Family.FORBIDDEN, ("blocked_address",)),
    Kind.REDIRECT_TO_METADATA: Facts(Family.FORBIDDEN, ("blocked_address",)),
    Kind.REDIRECT_TO_FILE: Facts(Family.FORBIDDEN, ("blocked_scheme",)),
    Kind.REDIRECT_TO_FTP: Facts(Family.FORBIDDEN, ("blocked_scheme",)),
    Kind.STALLED: Facts(Family.HARMFUL, ("timeout",)),
    Kind.ENDLESS: Facts(Family.HARMFUL, ("too_large",)),
    Kind.GZIP_BOMB: Facts(Family.HARMFUL, ("too_large",)),
    Kind.REDIRECT_LOOP: Facts(Family.HARMFUL, ("too_many_redirects",)),
    Kind.LENGTH_TOO_LONG: Facts(Family.HARMFUL, ("truncated_body",)),
    Kind.BAD_TLS: Facts(Family.HARMFUL, ("tls_error",)),
    Kind.SVG: Facts(Family.HARMFUL, ("format_refused",)),
    Kind.PNG_BOMB: Facts(Family.HARMFUL, ("too_many_pixels",)),
    Kind.PNG_NEAR_BOMB: Facts(Family.HARMFUL, ("success", "too_many_pixels")),
}
