"""The command `sluice caption`, joined to the command line by the entry points of `sluice.commands`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.table import Table
from rich.text import Text

from pipeline import cli
from pipeline.errors import SluiceError
from pipeline.show import plain

if TYPE_CHECKING:
    import numpy as np

    from models.captioners.decoding import Written
    from models.towers.matcher import Matcher

CHUNK = 32
"""Pictures that are held at once."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
"""Of the files that are taken out of a folder."""


@cli.example(
    "sluice caption models/captioner holiday.jpg",
    "sluice caption Salesforce/blip-image-captioning-base photos/ --candidates 3 --beam",
)
@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--candidates", type=click.IntRange(1, 64), default=1, show_default=True, help="Captions of an image.")
@click.option("--beam", is_flag=True, help="Search for the likeliest captions instead of drawing them.")
@click.option("--prompt", help="What the captions begin with, or what a model that chats is asked.")
@click.option("--filter", "matcher", metavar="CHECKPOINT", help="A BLIP that says how well each caption fits.")
@click.option("--seed", default=0, show_default=True, help="Another seed draws other captions.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu, cuda, cuda:1.")
@click.option("--json", "as_json", is_flag=True, help="A JSON document a line instead of a table.")
def caption(
    checkpoint: str,
    images: Sequence[Path],
    candidates: int,
    beam: bool,
    prompt: str | None,
    matcher: str | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Write captions of your own images by CHECKPOINT: a folder, or a model of the hub, that transformers loads.

    An IMAGE is a file, or a folder of them (JPEG, PNG, WebP, GIF). The same file gets the same captions, whatever else
    is asked beside it; --seed draws others. With --json captions come out while others are being written. Exits with 1
    where a file is no picture: it stands among the others, with the reason.
    """
    files = [file for place in images for file in _files(place)]
    chunks = _chunks(files)
    first = next(chunks)
    if len(first) == len(files) and all(one.picture is None for one in first):
        raise SluiceError(f"{first[0].file} is {first[0].error}; give a JPEG, PNG, WebP or GIF")
    coming = chain([first], chunks)
    from models.captioners.captioner import Captioner
    from models.captioners.decoding import Decoding  # torch and transformers: seconds, paid once the images are there
    from stages.kit.encoders import model_folder

    rows: list[dict[str, Any]] = []
    damaged = 0
    try:
        decoding = Decoding(
            method="beam" if beam else "nucleus", candidates=candidates, beams=max(3, candidates), seed=seed
        )
        with model_folder(checkpoint) as folder:
            captioner = Captioner.load(folder, device, "float32")
        judge = None if matcher is None else _judge(matcher, device)
        for some in coming:
            pictures = [one.picture for one in some if one.picture is not None]
            uids = [one.uid for one in some if one.picture is not None]
            damaged += len(some) - len(pictures)
            prompts = None if prompt is None else [prompt] * len(pictures)
            written = captioner.write(pictures, uids, decoding, prompts) if pictures else []
            for row in _rows(some, written, _fits(judge, pictures, written) if pictures else []):
                if as_json:
                    click.echo(json.dumps(row, ensure_ascii=False))
                else:
                    rows.append(row)
    except (ValueError, FloatingPointError) as error:
        raise SluiceError(str(error)) from None
    finally:  # what was written is shown whatever came after it
        if rows:
            cli.out.print(_table(rows, matcher is not None))
    if damaged:
        sys.exit(1)


def _files(place: Path) -> Iterator[Path]:
    """Raises `SluiceError` for a folder without images."""
    if not place.is_dir():
        yield place
        return
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS)
    if not found:
        raise SluiceError(f"{place} holds no image; expected files that end in {', '.join(ENDINGS)}")
    yield from found


class _Opened(NamedTuple):
    """A file, and its picture or why there is none."""

    file: Path
    picture: np.ndarray | None
    uid: str
    """What its draws follow from."""
    error: str | None


def _decoded(file: Path) -> _Opened:
    from pipeline.rows import decode

    try:
        data = file.read_bytes()
        return _Opened(file, decode(data), blake2b(data, digest_size=16).hexdigest(), None)
    except Exception as error:  # Pillow raises many kinds
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        return _Opened(file, None, "", f"no picture that can be read ({reason})")


def _chunks(files: Sequence[Path]) -> Iterator[list[_Opened]]:
    for start in range(0, len(files), CHUNK):
        yield [_decoded(file) for file in files[start : start + CHUNK]]


def _judge(matcher: str, device: str) -> Matcher:
    from models.towers.matcher import Matcher
    from stages.kit.encoders import model_folder

    with model_folder(matcher) as folder:
        return Matcher.load(folder, device, "float32")


def _fits(
    judge: Matcher | None, pictures: Sequence[np.ndarray], written: Sequence[Sequence[Written]]
) -> list[list[float | None]]:
    """The probability of every caption, or None for each where nobody was asked."""
    if judge is None:
        return [[None] * len(own) for own in written]
    import numpy as np

    image_of = np.repeat(np.arange(len(written)), [len(own) for own in written])
    told = [one.text for own in written for one in own]
    scores = iter(judge.scores([judge.preprocessing(one) for one in pictures], told, image_of, 64)[:, 0].tolist())
    return [[next(scores) for _ in own] for own in written]


def _rows(
    opened: Sequence[_Opened], written: Sequence[Sequence[Written]], fits: Sequence[Sequence[float | None]]
) -> Iterator[dict[str, Any]]:
    """`written` and `fits` are of the files that are pictures; the others have one row each."""
    found = zip(written, fits, strict=True)
    for one in opened:
        if one.picture is None:
            empty = dict.fromkeys(("caption", "token_probability", "fits"))
            yield {"image": str(one.file), **empty, "error": one.error}
            continue
        for said, fit in zip(*next(found), strict=True):
            yield {
                "image": str(one.file),
                "caption": said.text,
                "token_probability": None if said.score is None else round(math.exp(said.score), 3),
                "fits": None if fit is None else round(fit, 3),
                "error": None,
            }


def _table(rows: Sequence[dict[str, Any]], judged: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", no_wrap=True)
    table.add_column("caption", overflow="fold")
    table.add_column("a token", justify="right")
    if judged:
        table.add_column("fits", justify="right")
    before = None
    for row in rows:
        name = Text("") if row["image"] == before else plain(Path(row["image"]).name, 40)
        before = row["image"]
        chance = "" if row["token_probability"] is None else f"{row['token_probability']:.0%}"
        said = plain(row["caption"], 400) if row["caption"] else Text("(nothing)", "dim")
        if row["error"] is not None:
            said = plain(row["error"], 400)
            said.stylize("red")
        cells = [name, said, Text(chance, "dim")]
        if judged:
            fits = row["fits"]
            cells.append(Text("") if fits is None else Text(f"{fits:.0%}", "green" if fits >= 0.5 else "red"))
        table.add_row(*cells)
    return table
