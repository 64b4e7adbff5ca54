"""What captions tell of persons: addresses of mail, telephones, payment cards, bank accounts and networks, masked.

    - stages.caption_privacy.MaskedCaptions: {region: US}
    …
    - stages.shard.WebDataset: {text: masked_caption}

Numbers count only where they prove themselves, by a checksum or a numbering plan: years, sizes, prices, ISBNs, versions
and article numbers stay. Names and street addresses stay as well: captions are full of places and of people in public
life, and no pattern tells those from private ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pyarrow as pa
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import Batch, Device, PartStage

AT, DOT = r"(?:@|\s?[\[(]at[\])]\s?)", r"(?:\.|\s?[\[(]dot[\])]\s?)"
EMAIL = re.compile(
    rf"(?<![\w.%+-])[\w%+-](?:[\w.%+-]{{0,62}}[\w%+-])?{AT}(?:[^\W_](?:[\w-]{{0,61}}[^\W_])?{DOT}){{1,5}}([^\W\d_]{{2,24}})\b",
    re.IGNORECASE,
)
FILE_ENDINGS = frozenset({"png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "tif", "tiff", "avif", "heic", "pdf"})
"""No top-level domains: `icon@2x.png` is the name of a file."""

CARD = re.compile(
    r"(?<![\w.,-])(?:\d{14,16}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)", re.ASCII
)
ISSUERS = re.compile(
    r"4\d{15}|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d))\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
"""Visa, Mastercard, American Express, Discover, JCB and Diners, by ISO/IEC 7812 prefix and length."""

IBAN_LENGTHS = dict(
    re.findall(
        r"([A-Z]{2})(\d{2})",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23"
        "GL18GR27GT28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MR27MT31MU30"
        "NL18NO15PK24PL28PS29PT25QA29RO24RS22SA24SC31SD18SE24SI19SK24SM27ST25SV28TL23TN24TR26UA29VA22VG24XK20",
    )
)
"""Country -> characters, by the registry of ISO 13616."""
IBAN_HEAD = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})\d{2}(?= ?[A-Z0-9])", re.ASCII)

IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.ASCII | re.IGNORECASE)
VERSION = re.compile(
    r"\b(?:v|ver|version|release|firmware|build|update|driver|section|chapter|figure|fig)\W{0,2}$", re.IGNORECASE
)

HIGH_OCTET = 64
"""Four numbers below it are the version of a program sooner than an address: of those, 0.4 % have none above."""
UNICAST = ip_network("2000::/3")
"""Where the addresses of IPv6 are that anybody has (RFC 4291)."""

CUE = re.compile(
    r"\b(?:tel|telephone|phone|ph|call|mobile|cell|fax|whats\s?app|telefon|telefono|teléfono|handy|tél|hotline)\b\W{0,3}"
    r"(?:us\s|at\s|no\.?\s|number:?\s|now:?\s){0,2}\W{0,2}$|[☎☏📞📱✆]\W{0,3}$",
    re.IGNORECASE,
)
"""What stands before a telephone number that has none of `MARKS`, as article numbers and lists of sizes have none."""
MARKS = re.compile(r"[+()./-]")

HINT = re.compile(r"[@:]|[\[(]at[\])]|(?:\d\D{0,3}){7}|[A-Z]{2}\d\d|(?:\d\.){3}", re.IGNORECASE)
"""A caption without this holds nothing: most captions end here, and are spared the rest."""


class Find(NamedTuple):
    """Where something was found."""

    start: int
    end: int
    kind: str


class MaskedCaptions(PartStage):
    """Add `masked_caption` and `personal_data` to every caption; null where it is null.

    - `masked_caption`: the caption with `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]` or `[IP]` in the place of each find;
      the caption itself where nothing was found.
    - `personal_data`: the kinds that were found, in lower case, each once, in the order of the text.

    Found are e-mail addresses, also with `[at]` and `(dot)`; telephone numbers that are valid by the numbering plan of
    their country (Google's libphonenumber): international ones, and those of `region` where they are grouped as numbers
    are there or told to be one; payment cards (issuer, length, Luhn's checksum); IBANs (country, length, ISO 7064);
    public IP addresses that are no version number. Needs the extra `privacy`.
    """

    promise = "pure"
    grain = "caption"
    reads = frozenset({"caption"})
    adds = pa.schema([("masked_caption", pa.string()), ("personal_data", pa.list_(pa.string()))])

    region: str | None = Field(default=None, pattern=r"^[A-Z]{2}$")
    """ISO 3166-1 code of the country whose national telephone numbers are looked for; None: only international ones."""

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        phones = _phones(self.region)

        def mask(batch: Batch) -> pa.Table:
            rows: list[tuple[str | None, list[str] | None]] = []
            for caption in batch.table["caption"].to_pylist():
                rows.append((None, None) if caption is None else masked(caption, finds(caption, phones)))
            texts, kinds = zip(*rows, strict=True) if rows else ((), ())
            return pa.table([pa.array(texts, pa.string()), pa.array(kinds, pa.list_(pa.string()))], schema=self.adds)

        return mask


def masked(text: str, found: list[Find]) -> tuple[str, list[str]]:
    """The text with its finds (in order, none overlapping) replaced, and their kinds."""
    pieces, end = [], 0
    for find in found:
        pieces += [text[end : find.start], f"[{find.kind.upper()}]"]
        end = find.end
    return "".join(pieces) + text[end:], list(dict.fromkeys(find.kind for find in found))


def finds(text: str, phones: Callable[[str], Iterator[Find]]) -> list[Find]:
    """What a text tells of persons, in its order; of two that overlap, the kind that proves itself better."""
    if not HINT.search(text):
        return []
    found: list[Find] = []
    for look in (_emails, _ibans, _cards, _addresses, phones):
        for find in look(text):
            if all(find.end <= other.start or other.end <= find.start for other in found):
                found.append(find)
    return sorted(found)


def _emails(text: str) -> Iterator[Find]:
    for match in EMAIL.finditer(text):
        if match[1].casefold() not in FILE_ENDINGS:
            yield Find(*match.span(), "email")


def _ibans(text: str) -> Iterator[Find]:
    for head in IBAN_HEAD.finditer(text):
        length = int(IBAN_LENGTHS.get(head[1], 0))
        match = re.compile(rf"[A-Z0-9](?: ?[A-Z0-9]){{{max(length, 15) - 1}}}(?![A-Za-z0-9])").match(text, head.start())
        if length and match:
            plain = match[0].replace(" ", "")
            grouped = " ".join(plain[start : start + 4] for start in range(0, length, 4))
            digits = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
            if match[0] in (plain, grouped) and int(digits) % 97 == 1:
                yield Find(*match.span(), "iban")


def _cards(text: str) -> Iterator[Find]:
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if ISSUERS.fullmatch(digits) and luhn(digits):
            yield Find(*match.span(), "card")


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10 == 0


def _addresses(text: str) -> Iterator[Find]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                address = ip_address(match[0])
            except ValueError:
                continue
            likely = max(address.packed) >= HIGH_OCTET if address.version == 4 else address in UNICAST
            told = VERSION.search(text, max(0, match.start() - 20), match.start())
            if address.is_global and likely and not told:
                yield Find(*match.span(), "ip")


def _phones(region: str | None) -> Callable[[str], Iterator[Find]]:
    try:
        import phonenumbers
    except ImportError:
        raise SluiceError(
            "telephone numbers need phonenumberslite; install it: pip install 'sluice[privacy]'"
        ) from None
    if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
        raise SluiceError(f"region = {region!r} has no numbering plan; expected a country's code such as US")

    def look(text: str) -> Iterator[Find]:
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.STRICT_GROUPING):
            marked = MARKS.search(match.raw_string)
            if marked or CUE.search(text, max(0, match.start - 30), match.start):
                yield Find(match.start, match.end, "phone")

    return look
