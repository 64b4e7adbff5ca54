"""The sampled pairs of a what-if as pictures: one PNG, or one HTML page that loads nothing and runs nothing.

Images are read from the pool's tars by their offsets, checked against their sha256, decoded within bounds, and drawn
anew: no byte of a stranger reaches the page. Captions and URLs stand on it as text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from pipeline.errors import SluiceError
from pipeline.rows import decode
from pipeline.show import plain
from pipeline.store import Store
from pipeline.verdicts import Count
from pipeline.what_if import Sample, WhatIf, reason

SIDE = 176
"""Pixels of the longer side of a picture."""
COLUMNS = 6
LINES, LINE = 5, 14
"""Lines of text below a picture, and their height in pixels."""
GAP = 10
HEAD = 34
TEXT_CHARS = 28
GREY, INK, PAPER = (232, 232, 232), (30, 30, 30), (255, 255, 255)
CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #1e1e1e; background: #fff; margin: 2rem; }
h2 { margin: 2rem 0 .6rem; font-size: 1.1rem; }
table { border-collapse: collapse; } th, td { padding: .15rem 1rem .15rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 1rem; }
figure { margin: 0; overflow-wrap: anywhere; } figure img { max-width: 100%; background: #e8e8e8; }
figcaption { font-size: .8rem; } .dim { color: #707070; } code { font-size: .85em; }
"""


def draw_png(store: Store, found: WhatIf, path: str) -> None:
    """Write the sample as one picture.

    Raises `SluiceError` where the file cannot be written, or an image is damaged.
    """
    sections = _sections(found)
    rows = [-(-max(1, len(samples)) // COLUMNS) for _, samples in sections]
    cell = (SIDE + GAP, SIDE + LINES * LINE + GAP)
    size = (COLUMNS * cell[0] + GAP, sum(HEAD + count * cell[1] for count in rows) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(12), ImageFont.load_default(17)
    top = GAP
    for (title, samples), count in zip(sections, rows, strict=True):
        pen.text((GAP, top), title, INK, large)
        for place, sample in enumerate(samples):
            corner = (GAP + place % COLUMNS * cell[0], top + HEAD - GAP + place // COLUMNS * cell[1])
            picture = thumbnail(store, sample)
            if picture is None:
                pen.rectangle((*corner, corner[0] + SIDE, corner[1] + SIDE), GREY)
            else:
                sheet.paste(picture, corner)
            for line, text in enumerate(_lines(sample)):
                pen.text((corner[0], corner[1] + SIDE + 2 + line * LINE), text, INK, small)
        top += HEAD + count * cell[1]
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    _write(path, sink.getvalue())


def write_html(store: Store, found: WhatIf, path: str) -> None:
    """Write both funnels and the sample as one page. Raises `SluiceError` as `draw_png` does."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">',
        f"<title>what if: {escape(found.node)}</title><style>{STYLE}</style>",
        f"<h1>{escape(found.node)} of run {escape(found.run)}</h1>",
        f"<p>{found.pairs:,} pairs: {found.kept:,} are kept, {found.would_keep:,} would be.</p>",
        _funnels(found),
    ]
    for title, samples in _sections(found):
        parts.append(f"<h2>{escape(title)}</h2><div class=grid>")
        parts += [_figure(thumbnail(store, sample), sample) for sample in samples]
        parts.append("</div>")
    _write(path, "\n".join(parts).encode())


def thumbnail(store: Store, sample: Sample) -> Image.Image | None:
    """The sample's image, its longer side at most `SIDE`; None where there is none, or it cannot be decoded.

    Raises `SluiceError` where its bytes are not those that were stored.
    """
    if sample.image is None:
        return None
    place = sample.image
    data = store.get_range(place.path, place.offset, place.offset + place.nbytes)
    if sample.sha256 is not None and sha256(data).hexdigest() != sample.sha256:
        raise SluiceError(
            f"{place.path} is corrupt at byte {place.offset} (uid {sample.uid}); `sluice verify {store.root} --repair`"
        )
    try:
        picture = Image.fromarray(decode(data))
    except (UnidentifiedImageError, ValueError, OSError, Image.DecompressionBombError):
        return None
    picture.thumbnail((SIDE, SIDE))
    return picture


def _sections(found: WhatIf) -> list[tuple[str, Sequence[Sample]]]:
    gained = sum(count for was, now, count in found.moves if now is None)
    lost = sum(count for was, now, count in found.moves if was is None)
    return [
        (f"would be dropped, by: {len(found.lost):,} of {lost:,} pairs", found.lost),
        (f"would be kept, no longer dropped by: {len(found.gained):,} of {gained:,} pairs", found.gained),
    ]


def _lines(sample: Sample) -> list[str]:
    """What stands below a picture, cut to its width."""
    texts = (reason(sample), str(plain(sample.caption or "", 400)))
    return [line for text in texts for line in wrap(text, TEXT_CHARS)][:LINES]


def _funnels(found: WhatIf) -> str:
    rows = "".join(
        f"<tr><td>{escape(step.rule)}<td class=n>{_left(step.before)}"
        f"<td class=n>{_left(step.after)}<td><code>{escape(step.now or 'gone')}</code>"
        for step in found.steps
    )
    return f"<table><tr><th>rule<th>left now<th>left then<th>condition{rows}</table>"


def _left(count: Count | None) -> str:
    return "" if count is None else f"{count.left:,}"


def _figure(picture: Image.Image | None, sample: Sample) -> str:
    image = "<p class=dim>no image</p>"
    if picture is not None:
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=85)
        image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}">'
    lines: Iterable[tuple[str, str]] = (
        ("", reason(sample)),
        ("", sample.caption or ""),
        ("dim", sample.url or ""),
        ("dim", sample.uid),
    )
    texts = "<br>".join(f'<bdi class="{kind}">{escape(str(plain(text, 400)))}</bdi>' for kind, text in lines)
    return f"<figure>{image}<figcaption>{texts}</figcaption></figure>"


def _write(path: str, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise SluiceError(f"{path}: {error.strerror}; name a file in a folder that exists") from None
