"""Tars as other tools write them, and what may be wrong with one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Members = Iterable[tuple[str, bytes]]


def tar_of(members: Members, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar with these files, in this order."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def picture(number: int, width: int = 24, height: int = 16, kind: str = "JPEG") -> bytes:
    """Another image for every number: a gradient between two colours."""
    rng = np.random.default_rng(number)
    low, high = rng.uniform(0, 255, (2, 3))
    share_hw1 = np.linspace(0, 1, height * width).reshape(height, width, 1)
    sink = io.BytesIO()
    Image.fromarray((low + (high - low) * share_hw1).astype(np.uint8)).save(sink, kind)
    return sink.getvalue()


def pair(number: int, image: bytes | None = None, captions: int = 1) -> list[tuple[str, bytes]]:
    """The members of a sample, laid out as sluice's are; its caption names its number."""
    texts = [f"picture {number} told {way} times" for way in range(captions)]
    document = {"uid": f"{number:08x}", "captions": [{"text": text, "source": "web"} for text in texts]}
    return [
        (f"{number:08x}.jpg", picture(number) if image is None else image),
        (f"{number:08x}.txt", texts[0].encode()),
        (f"{number:08x}.json", json.dumps(document).encode()),
    ]


def shards(folder: Path, samples: Iterable[int], per_shard: int, images: Mapping[int, bytes] | None = None) -> Path:
    """A folder of tars; `images` takes the place of the pictures of some samples."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(samples)
    for shard, start in enumerate(range(0, len(numbers), per_shard)):
        rows = [pair(number, (images or {}).get(number)) for number in numbers[start : start + per_shard]]
        (folder / f"{shard:05d}.tar").write_bytes(tar_of(member for row in rows for member in row))
    return folder
