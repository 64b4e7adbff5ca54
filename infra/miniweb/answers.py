"""What the server says for every kind of page: the file that a page has, and how it is brought.

Files are worked out in threads or processes (`file_of`), what is said on the server's loop (`reply_to`).
"""

from collections.abc import Callable, Iterator
from itertools import chain, repeat

from infra.miniweb import files
from infra.miniweb.copies import ALTERATIONS, Body, cropped, opened, recoloured, reencoded, resized
from infra.miniweb.http import NOT_FOUND, Answer, Raw, Reply, Request
from infra.miniweb.kinds import Kind
from infra.miniweb.plan import BROKEN_HOST, Page, Plan
from infra.miniweb.render import encoded, jpeg, paint

WHOLE = 0.6
"""How much of a truncated image is left."""
DRIBBLES, DRIBBLE_S = 8, 0.1
STALL_S = 1.0
FAILURES = (500, 502, 503)
TAIL = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 6\r\n\r\nforged"
"""What is smuggled in behind an image."""
ROBOTS = "User-agent: *\nDisallow: /{seed}/private/\n"

COPIES = {
    Kind.REENCODED_COPY: reencoded,
    Kind.RESIZED_COPY: resized,
    Kind.CROPPED_COPY: cropped,
    Kind.RECOLOURED_COPY: recoloured,
}


def file_of(plan: Plan, number: int) -> Body:
    """The bytes and content type that a page's image has."""
    page = plan[number]
    scene = page.scene
    match page.kind:
        case Kind.PLACEHOLDER:
            return files.placeholder(), "image/jpeg"
        case Kind.REENCODED_COPY | Kind.RESIZED_COPY | Kind.CROPPED_COPY | Kind.RECOLOURED_COPY:
            return COPIES[page.kind](opened(jpeg(scene)), page.dice("copy"))
        case Kind.ALTERED_LEAK:
            dice = page.dice("copy")
            return dice.choice(ALTERATIONS)(opened(jpeg(scene)), dice)
        case Kind.CMYK:
            return files.cmyk(paint(scene), scene.quality), "image/jpeg"
        case Kind.DEEP:
            return files.deep_png(paint(scene)), "image/png"
        case Kind.PALETTE_ALPHA:
            return files.palette_alpha(paint(scene)), "image/png"
        case Kind.ANIMATED_GIF:
            return files.animated_gif(paint(scene)), "image/gif"
        case Kind.ANIMATED_WEBP:
            return files.animated_webp(paint(scene), scene.quality), "image/webp"
        case Kind.ROTATED:
            return files.rotated(paint(scene), 2 + page.rank % 7, scene.quality), "image/jpeg"
        case Kind.POLYGLOT:
            return files.polyglot(jpeg(scene)), "image/jpeg"
        case Kind.PNG_BOMB:
            return files.png_bomb(), "image/png"
        case Kind.PNG_NEAR_BOMB:
            return files.png_near_bomb(), "image/png"
        case Kind.TRUNCATED_IMAGE:
            data = jpeg(scene)
            return data[: int(WHOLE * len(data))], "image/jpeg"
        case _:
            return encoded(paint(scene), scene.quality), "image/jpeg"


def robots(plan: Plan, request: Request) -> Answer:
    """robots.txt: one folder is disallowed; on one host it is out of order."""
    if request.host == BROKEN_HOST:
        return Answer(b"out of order\n", "text/plain", 503)
    return Answer(ROBOTS.format(seed=plan.seed).encode(), "text/plain")


def without_file(page: Page, request: Request) -> Reply | None:
    """What is said to a request without looking at the image; None where the image is sent."""
    match page.kind:
        case Kind.NOT_FOUND | Kind.NO_URL | Kind.BAD_NAME:
            return NOT_FOUND
        case Kind.GONE:
            return Answer(b"gone for good\n", "text/plain", 410)
        case Kind.SERVER_ERROR:
            return Answer(b"out of order\n", "text/plain", 500)
        case Kind.HANG_UP:
            return Answer(hang_up=True)
        case Kind.HTML:
            return Answer(files.LOGIN, "text/html")
        case Kind.EMPTY:
            return Answer()
        case Kind.SVG:
            return Answer(files.SVG, "image/svg+xml")
        case Kind.FLAKY if request.hit <= 1 + page.rank % 2:
            return Answer(b"try again\n", "text/plain", FAILURES[page.rank % len(FAILURES)])
        case Kind.RATE_LIMITED if request.hit == 1:
            return Answer(b"too fast\n", "text/plain", 429, headers=(("Retry-After", "1"),))
        case Kind.STALLED:
            return Raw(lambda: chain([Answer().head(length=100_000)], repeat(b"\xff")), STALL_S)
        case Kind.ENDLESS:
            return Raw(endless)
        case Kind.GZIP_BOMB:
            return Raw(gzip_bomb)
        case _:
            return _redirected(page, request)


def _redirected(page: Page, request: Request) -> Answer | None:
    match page.kind:
        case Kind.REDIRECT if request.path == page.path:
            target = page.at("moved")
        case Kind.REDIRECT_LOOP:
            target = page.path or ""
        case Kind.REDIRECT_TO_METADATA:
            target = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
        case Kind.REDIRECT_TO_FILE:
            target = "file:///etc/passwd"
        case Kind.REDIRECT_TO_FTP:
            target = "ftp://127.0.0.1/image.jpg"
        case _:
            return None
    return Answer(b"", "text/plain", 302, headers=(("Location", target),))


RESERVING = {
    Kind.NOAI: ("X-Robots-Tag", "noai"),
    Kind.NOIMAGEAI: ("X-Robots-Tag", "noimageai"),
    Kind.TDM_RESERVED: ("tdm-reservation", "1"),
}


def with_file(page: Page, body: Body) -> Answer | Raw:
    """How a page's image is brought."""
    headers = (RESERVING[page.kind],) if page.kind in RESERVING else ()
    answer = Answer(*body, headers=headers)
    match page.kind:
        case Kind.SLOW:
            return Raw(_pieces(answer), DRIBBLE_S)
        case Kind.LENGTH_TOO_LONG:
            return Raw(lambda: [answer.head(length=len(answer.body) + 1000), answer.body])
        case Kind.SMUGGLED:
            return Raw(lambda: [answer.head() + answer.body + TAIL])
        case _:
            return answer


def _pieces(answer: Answer) -> Callable[[], Iterator[bytes]]:
    step = -(-len(answer.body) // DRIBBLES)
    cuts = range(0, len(answer.body), step)
    return lambda: chain([answer.head(closing=True)], (answer.body[start : start + step] for start in cuts))


def endless() -> Iterator[bytes]:
    """A chunked body without an end."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from repeat(b"10000\r\n" + b"\xff" * 0x10000 + b"\r\n")


def gzip_bomb() -> Iterator[bytes]:
    """A gzip stream of 10 GiB of zeros in 10 MB."""
    head, block = files.zeros_block()
    yield b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + head
    yield from repeat(block, files.GZIP_BOMB_BYTES >> 20)
