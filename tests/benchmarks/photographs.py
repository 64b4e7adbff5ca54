"""Images to download, and a plain server for them: `python -m tests.benchmarks.photographs <folder>`.

Scenes are those of the small local web, as large as it has them. Photographs have more bytes for each pixel, and what
takes time is to unpack them, which nobody can leave out; so they are a harder case.

Noise of all octaves, weaker towards the fine ones as in nature, has about as many bytes as a photograph of its size,
and so costs as much to decode: 210 KB for 1200 x 900 at quality 85.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from infra.miniweb.render import jpeg
from infra.miniweb.scenes import SIDES, draw_scene

MEDIAN_SIDE = 1200
RATIOS = ((4 / 3, 3 / 4), (3 / 2, 2 / 3), (1, 1), (3 / 4, 4 / 3), (2 / 3, 3 / 2), (16 / 9, 9 / 16))
"""Width and height, of area 1 once the root is taken."""


def sizes(count: int) -> list[tuple[int, int]]:
    """Widths and heights, log-normal; `MEDIAN_SIDE` is the median of all of them, the longest has 3,000 pixels."""
    rng = np.random.default_rng(7)
    scale_n = np.exp(rng.normal(0, 0.4, count))
    sides_n2 = scale_n[:, None] * np.array(RATIOS)[rng.integers(0, len(RATIOS), count)] ** 0.5
    sides_n2 = (sides_n2 * MEDIAN_SIDE / np.median(sides_n2)).clip(64, 3000)
    return [(round(width), round(height)) for width, height in sides_n2]


def photograph(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG of quality 85, 4:2:0."""
    rng = np.random.default_rng(seed)
    planes = [128 + 50 * _noise(rng, size, 0.78, finest=0)] + [128 + 18 * _noise(rng, size, 0.6, 3) for _ in "uv"]
    image = Image.merge("YCbCr", [Image.fromarray(plane.clip(0, 255).astype(np.uint8)) for plane in planes])
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    return sink.getvalue()


def _noise(rng: np.random.Generator, size: tuple[int, int], fall: float, finest: int) -> np.ndarray:
    """float32 (height, width), standard deviation 1: every octave has `fall` times the amplitude of the coarser one."""
    plane = Image.fromarray(rng.normal(0, 1, (3, 3)).astype(np.float32))
    amplitude = 1.0
    for octave in range(max(size).bit_length() - 2, -1, -1):
        width, height = (max(2, -(-side >> octave)) for side in size)
        plane = plane.resize((width, height), Image.Resampling.BICUBIC)
        if octave >= finest:
            amplitude *= fall
            grain = rng.standard_normal((height, width), dtype=np.float32)
            plane = Image.fromarray(np.asarray(plane) + amplitude * grain)
    found = np.array(plane, dtype=np.float32)
    found /= found.std()
    return found


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Render what is not there yet."""
    wanted = sizes(count)
    return _write(folder, count, lambda seed: photograph(wanted[seed], seed))


def write_scenes(folder: Path, count: int) -> list[Path]:
    """Render what is not there yet: sides log-normal around 1200, qualities from 30 to 95."""
    return _write(folder, count, lambda seed: jpeg(draw_scene(f"benchmark {seed}", SIDES["large"])))


def _write(folder: Path, count: int, rendered: Callable[[int], bytes]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:04d}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(rendered(seed))
    return paths


class Server(asyncio.Protocol):
    """`/anything/<file name>` is that file; connections stay open unless they ask not to."""

    def __init__(self, bodies: dict[bytes, bytes]) -> None:
        self._bodies = bodies
        self._waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while b"\r\n\r\n" in self._waiting:
            request, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
            path = request.split(b" ", 2)[1]
            body = self._bodies.get(path.rpartition(b"/")[2])
            if body is None:
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            else:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
                self._transport.write(head)
                self._transport.write(body)
            if b"connection: close" in request.lower():
                self._transport.close()


async def serve(folder: Path) -> None:
    bodies = {path.name.encode(): path.read_bytes() for path in folder.glob("*.jpg")}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(bodies), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
