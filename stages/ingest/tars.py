"""The members of a tar that img2dataset wrote: streamed once from front to back, hashed, never extracted."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, Any, BinaryIO, cast

import fsspec

from pipeline.errors import SluiceError
from stages.kit.endings import ending_of

TEXTS = frozenset({"txt", "json", "cls"})
"""Endings of members that are no image."""
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}
BLOCK = 1 << 20


@dataclass(frozen=True)
class Image:
    """The image of a key: where its bytes lie and what they are; or why the tar's member was refused."""

    offset: int = 0
    nbytes: int = 0
    sha256: str = ""
    known_format: bool = True
    """Whether the bytes begin like a JPEG, PNG, WebP or GIF."""
    refused: str | None = None


@dataclass(frozen=True)
class Tar:
    """A whole tar, read once."""

    bytes: int
    sha256: str
    images: dict[str, Image]


class _Hashing:
    """Gives what it reads to a hash as well; all that tarfile asks of a stream is `read`."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.sha = sha256()
        self.size = 0

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self.sha.update(data)
        self.size += len(data)
        return data


def scan(path: str) -> Tar:
    """The images of a tar by key.

    Raises `SluiceError` naming the tar, and the key of one that stands twice or whose members do not stand together.
    """
    fs, inner = fsspec.core.url_to_fs(path)
    try:
        with fs.open(inner, "rb") as raw:
            stream = _Hashing(raw)
            images = _images(cast(BinaryIO, stream), path)
            while stream.read(BLOCK):
                pass
    except FileNotFoundError:
        raise SluiceError(f"{path} is gone; put it back, or take its shard out of `files`") from None
    except tarfile.TarError as error:
        raise SluiceError(f"{path} is no readable tar: {error}; run img2dataset for this shard again") from None
    return Tar(stream.size, stream.sha.hexdigest(), images)


def _images(stream: BinaryIO, path: str) -> dict[str, Image]:
    images: dict[str, Image] = {}
    seen: set[str] = set()
    current, endings = "", set[str]()
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as tar:
        for member in tar:
            key, ending = _split(member.name)
            if key != current:
                if key in seen:
                    raise SluiceError(
                        f"{path}: the members of key {key!r} do not stand together; img2dataset did not write this tar"
                    )
                seen.add(key)
                current, endings = key, set()
            if ending in endings:
                raise SluiceError(f"{path}: key {key!r} has two members {member.name!r}; samples would be mixed up")
            endings.add(ending)
            if not member.isreg() or member.issparse():
                images[key] = Image(refused=f"{member.name!r} is {KINDS.get(member.type, 'no plain file')}")
            elif ending not in TEXTS and not (key in images and images[key].refused):
                if key in images:
                    raise SluiceError(f"{path}: key {key!r} has two images; expected one")
                images[key] = _image(member, tar.extractfile(member))
    return images


def _split(name: str) -> tuple[str, str]:
    """Key and ending, as webdataset splits them: at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _image(member: tarfile.TarInfo, content: IO[bytes] | None) -> Image:
    assert content is not None  # a regular file has content
    sha, head = sha256(), b""
    for block in _blocks(content):
        head = head or block[:16]
        sha.update(block)
    return Image(member.offset_data, member.size, sha.hexdigest(), ending_of(head) is not None)


def _blocks(content: Any) -> Iterator[bytes]:
    while block := content.read(BLOCK):
        yield block
