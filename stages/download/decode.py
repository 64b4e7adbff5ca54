"""The program that meets hostile images: `python decode.py <json options> <socket on file descriptor 0>`.

It imports the standard library and Pillow only, so that it starts fast and has little to attack. It takes an image's
bytes in a frame and answers with a frame: JSON that says how it ended, and the JPEG that it made. Before the first
image it confines itself: 1 GiB of address space, 10 s of CPU per image, no network, no other programs, no files but
Python's own (`confine`). `decoders.py` holds the other end and kills it when it is late.

JPEGs are decoded at 1/2, 1/4 or 1/8 by libjpeg's own scaling where at least twice the target remains, and then shrunk
by a filter one target pixel wide on either side. OpenCV would do it no faster: of web photographs of 1200 px on average
4.2 ms for decoding here and 4.0 there, 1.9 ms for shrinking to 256 px here and 2.3 there (INTER_AREA, from reduced
scale); its decoder says nothing of truncated files, and it would bring numpy and 29 more readers into this process.
"""

import ctypes
import errno
import io
import json
import math
import os
import platform
import re
import resource
import struct
import sys
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MEMORY_BYTES = 1 << 30
CPU_S = 10
FRAME = struct.Struct("!II")
"""Bytes of JSON, bytes of image."""
MAX_EXIF = 16_384
"""Characters of EXIF kept as text."""
MAX_SIDE = 65_500
"""Pixels of a side that libjpeg writes."""
GRAY_SIDE = 32
"""Pixels of the side of the small gray square that the perceptual hash is made of."""

READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,  # the class and not the factory, which hands over to the reader of MPO
    "PNG": PngImageFile,
    "GIF": GifImageFile,
    "WEBP": WebPImageFile,
}
MAGIC = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "TIFF"),
    (re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"....ftyp(avi[fs]|hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "AVIF or HEIF"),
    (re.compile(rb"\0\0\0\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL"),
    (re.compile(rb"\0\0[\x01\x02]\0[\x01-\xff]\0"), "ICO"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"P[1-7][\s#]"), "PNM"),
    (re.compile(rb"%!PS"), "EPS"),
    (re.compile(rb"DDS "), "DDS"),
    (re.compile(rb"qoif"), "QOI"),
    (re.compile(rb"icns"), "ICNS"),
    (re.compile(rb"\x76\x2f\x31\x01"), "EXR"),
    (re.compile(rb"#\?RADIANCE"), "HDR"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<svg[\s>]|<(?:\?xml|!--|!DOCTYPE svg).*<svg[\s>])", re.DOTALL), "SVG"),
)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
"""Of the flags of open: any of them would change a file."""
ANY, ONE = 0x45, 0x15
"""BPF_JSET, BPF_JEQ: an argument has any of these bits; it is this number."""
SYSCALLS = {
    "x86_64": (
        0xC000003E,
        (
            *(41, 42, 43, 288, 49, 50, 53),  # socket connect accept(4) bind listen socketpair
            *(59, 322, 56, 57, 58, 435),  # execve(at) clone fork vfork clone3
            *(62, 200, 234, 129, 297, 424, 434, 438),  # kill tkill tgkill rt_(tg)sigqueueinfo pidfd_…
            *(101, 310, 311, 425),  # ptrace process_vm_…, io_uring_setup (which can do most of all this)
            *(76, 82, 83, 84, 85, 86, 87, 88, 132, 133, 235),  # truncate rename mkdir … utime mknod utimes
            *(*range(90, 95), *range(188, 191), *range(197, 200)),  # chmod … lchown, setxattr …, removexattr …
            *(258, 259, 260, 261, 263, 264, 265, 266, 268, 280, 316, 452, 463, 466),  # the same by folder
            *(304, 437, 161, 165, 166, 272, 308),  # open_by_handle_at openat2 chroot mount umount2 unshare setns
        ),
        # open and openat for writing; prlimit of another process; fcntl's and ioctl's ways to have signals sent
        ((2, 1, ANY, (WRITING,)), (257, 2, ANY, (WRITING,)), (302, 0, ANY, (0xFFFFFFFF,)),
         (72, 1, ONE, (8, 10, 15)), (16, 1, ONE, (0x8901, 0x8902))),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(198, 203, 202, 242, 200, 201, 199, 221, 281, 220, 435),
            *(129, 130, 131, 138, 240, 424, 434, 438, 117, 270, 271, 425),
            *(45, *range(33, 39), *range(52, 56), 88, *range(5, 8), *range(14, 17), 276, 452, 463, 466),
            *(265, 437, 51, 40, 39, 97, 268),
        ),
        ((56, 2, ANY, (WRITING,)), (261, 0, ANY, (0xFFFFFFFF,)), (25, 1, ONE, (8, 10, 15)),
         (29, 1, ONE, (0x8901, 0x8902))),
    ),
}  # fmt: skip
"""machine -> (its AUDIT_ARCH, calls that a decoder has no use for, (call, argument, test, values) that are refused)."""
LANDLOCK = ((0x1FFF, 8), (0x3FFF, 8), (0x7FFF, 8), (0x7FFF, 16), (0xFFFF, 16), (0xFFFF, 24))
"""By version, from 1: every right over files that it knows, and the bytes of what it is asked with."""


class DecodeError(Exception):
    """The image ends with `status`; `facts` are what is known of it all the same."""

    def __init__(self, status: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.status = status
        self.facts = facts


@dataclass(frozen=True)
class Options:
    """What to make of an image; `stages.download.Download` says what each of them means."""

    resize: str
    side: int
    resize_only_if_bigger: bool
    passthrough: bool
    quality: int
    max_pixels: int

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing and before cutting or padding: those of img2dataset's Resizer."""
        if self.resize == "no":
            return size
        measured = min(size) if self.resize in ("keep_ratio", "center_crop") else max(size)
        if self.resize_only_if_bigger and measured <= self.side:
            return size
        scale = self.side / measured
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def final(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after cutting or padding. Like img2dataset, that leaves alone what resizing leaves alone."""
        fitted = self.fitted(size)
        square = self.resize in ("center_crop", "border") and (fitted != size or not self.resize_only_if_bigger)
        return (self.side, self.side) if square else fitted


def decode(data: bytes, options: Options) -> tuple[dict[str, Any], bytes]:
    """(facts, JPEG): frame 0, upright, RGB over white, resized; no JPEG where the bytes are kept as they are.

    Raises `DecodeError`.
    """
    kind = sniff(data)
    _check_size(webp_size(data) if kind == "WEBP" else None, options, kind)
    try:
        image = READERS[kind](io.BytesIO(data))
        _check_size(image.size, options, kind)
        return _picture(image, kind, options)
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_many_pixels", _said(error), format=kind) from None
    except MemoryError:
        raise DecodeError("oom", f"more than {MEMORY_BYTES >> 20} MiB needed", format=kind) from None
    except Exception as error:  # Pillow's readers raise nearly anything on broken input
        raise DecodeError(_broken(error, data, kind), _said(error), format=kind) from None


def _picture(image: ImageFile.ImageFile, kind: str, options: Options) -> tuple[dict[str, Any], bytes]:
    lying = image.size
    if kind != "JPEG":
        image.load()  # what a PNG says of itself may lie behind its pixels
    exif, orientation = _exif(image)
    turned = orientation >= 5  # width and height change places
    size = _turned(lying) if turned else lying
    fitted, final = options.fitted(size), options.final(size)
    kept = options.passthrough and size == fitted == final and orientation == 1 and _is_plain(image, kind)
    target = _turned(fitted) if turned else fitted
    box = None
    if isinstance(image, JpegImageFile):
        least = (GRAY_SIDE, GRAY_SIDE) if kept else target
        # The least scale that leaves so much; of a picture that is only looked at, brightness is enough.
        drafted = image.draft("L" if kept else None, (2 * least[0], 2 * least[1]))
        box = drafted and drafted[1]
    if not kept:
        _check_made(fitted, final, options, kind)
    image.load()
    picture = _rgb(_simple(image) if kept else _resized(_simple(image), target, box))
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
    facts = {
        "format": kind,
        "frames": _frames(image),
        "width": final[0],
        "height": final[1],
        "original_width": size[0],
        "original_height": size[1],
        "exif": exif,
        "gray": _resized(picture, (GRAY_SIDE, GRAY_SIDE)).convert("L").tobytes().hex(),
    }
    return facts, b"" if kept else _encode(_framed(picture, final), options.quality)


def sniff(data: bytes) -> str:
    """JPEG, PNG, GIF or WEBP by the first bytes. Raises `DecodeError` for anything else."""
    head = data[:1024]
    kind = next((name for pattern, name in MAGIC if pattern.match(head)), None)
    if kind is None:
        raise DecodeError("not_an_image", f"begins with {bytes(head[:16])!r}")
    if kind not in READERS:
        raise DecodeError("format_refused", f"{kind}; expected JPEG, PNG, WebP or GIF", format=kind)
    return kind


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in a WebP's header (RFC 9649), read here because Pillow's reader makes its canvas first."""
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _check_size(size: tuple[int, int] | None, options: Options, kind: str) -> None:
    if size is not None and size[0] * size[1] > options.max_pixels:
        message = f"{size[0]} x {size[1]} is more than max_pixels = {options.max_pixels}"
        raise DecodeError("too_many_pixels", message, format=kind, original_width=size[0], original_height=size[1])


def _broken(error: Exception, data: bytes, kind: str) -> str:
    """Whether an image ends early (`truncated_image`), is too large for memory (`oom`) or is plainly broken."""
    said = str(error).lower()
    if "memory" in said:
        return "oom"
    if kind == "WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8:
        return "truncated_image"
    early = isinstance(error, (EOFError, IndexError, struct.error))
    return "truncated_image" if early or "truncated" in said or "end of file" in said else "decode_error"


def _simple(image: Image.Image) -> Image.Image:
    """The same picture in L, RGB or RGBA."""
    if image.mode.startswith("I"):  # 16 bit; convert("L") would clip at 255
        return image.convert("I").point(lambda value: value * (255 / 65535) + 0.5).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _turned(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]


def _is_plain(image: ImageFile.ImageFile, kind: str) -> bool:
    """Whether every reader shows the bytes as we would: no CMYK, no 16 bit, nothing that moves or is seen through."""
    if kind == "GIF" or getattr(image, "n_frames", 1) > 1:
        return False
    return image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data


def _check_made(fitted: tuple[int, int], final: tuple[int, int], options: Options, kind: str) -> None:
    """Enlarging a strip by its short side makes as many pixels as a bomb."""
    made = f"resized to {fitted[0]} x {fitted[1]}, which is more than"
    if fitted[0] * fitted[1] > options.max_pixels:
        raise DecodeError("too_many_pixels", f"{made} max_pixels = {options.max_pixels}", format=kind)
    if max(final) > MAX_SIDE:
        raise DecodeError("too_many_pixels", f"{made} a JPEG's {MAX_SIDE} pixels a side", format=kind)


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """`box` is where the picture lies in a decoded one, whose last row and column may be only partly covered."""
    if size == image.size:
        return image
    if size[0] > image.width or size[1] > image.height:
        return image.resize(size, Image.Resampling.LANCZOS, box)
    # Of Pillow's filters the one closest to averaging areas: PSNR 51 dB to OpenCV's INTER_AREA; BOX, which takes whole
    # pixels or none, 37 to 44 dB. The gap averages whole blocks first where so many times the target remain: a third
    # less work, 41 dB at least. Four times and more is what a JPEG would have been decoded at reduced scale for.
    gap = 2.0 if min(image.width // size[0], image.height // size[1]) >= 4 else 1.35
    return image.resize(size, Image.Resampling.HAMMING, box, reducing_gap=gap)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB without any metadata, transparency over white."""
    if image.mode == "RGBA":
        picture = Image.new("RGB", image.size, "white")
        picture.paste(image, mask=image.getchannel("A"))
    else:
        picture = image.convert("RGB")
    picture.info.clear()
    return picture


def _framed(picture: Image.Image, final: tuple[int, int]) -> Image.Image:
    """The middle of what is larger than `final`, white beside what is smaller."""
    if picture.size == final:
        return picture
    left, top = (picture.width - final[0]) // 2, (picture.height - final[1]) // 2
    if left >= 0 and top >= 0:
        return picture.crop((left, top, left + final[0], top + final[1]))
    frame = Image.new("RGB", final, "white")
    frame.paste(picture, ((final[0] - picture.width) // 2, (final[1] - picture.height) // 2))
    return frame


def _encode(picture: Image.Image, quality: int) -> bytes:
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=quality, subsampling="4:2:0")
    return jpeg.getvalue()


def _frames(image: Image.Image) -> int:
    """How many frames an animation has; those before the first broken one."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # frame 0 was fine, and it is the one that is kept
        return image.tell() + 1


def _exif(image: Image.Image) -> tuple[str | None, int]:
    """EXIF as JSON text by tag name, and the orientation (1 to 8). Broken EXIF is none: the pixels are what counts."""
    try:
        tags = image.getexif()
        orientation = tags.get(ExifTags.Base.Orientation, 1)
        named: dict[str, str] = {}
        for names, values in (
            (ExifTags.TAGS, dict(tags)),
            (ExifTags.TAGS, tags.get_ifd(ExifTags.IFD.Exif)),
            (ExifTags.GPSTAGS, tags.get_ifd(ExifTags.IFD.GPSInfo)),
        ):
            kept = {tag: value for tag, value in values.items() if not isinstance(value, bytes)}
            named |= {names.get(tag, str(tag)): str(value).strip("\0 ")[:500] for tag, value in kept.items()}
        text = json.dumps(named, sort_keys=True) if named else None
    except Exception:
        return None, 1
    return (text if text and len(text) <= MAX_EXIF else None), (orientation if orientation in UPRIGHT else 1)


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def answer(data: bytes, options: Options) -> tuple[dict[str, Any], bytes]:
    """`decode`, with its end in words under `status` and `message`."""
    try:
        facts, jpeg = decode(data, options)
    except DecodeError as refused:
        return {"status": refused.status, "message": str(refused), **refused.facts}, b""
    return {"status": "success", **facts}, jpeg


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """(JSON, image bytes); None at the end of the stream."""
    head = stream.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    words, image = FRAME.unpack(head)
    return stream.read(words), stream.read(image)


def write_frame(stream: BinaryIO, words: dict[str, Any], image: bytes = b"") -> None:
    text = json.dumps(words).encode()
    stream.write(FRAME.pack(len(text), len(image)) + text + image)
    stream.flush()


def confine() -> str:
    """Give up memory, network, other programs, signals, writing files, and reading them but for Python's own folders.

    Returns what could not be given up, in words, or nothing. Without Landlock (Linux before 5.13, and some containers)
    whatever this user may read stays readable, /proc/PID/environ of its other processes and their secrets included.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 1 << 20)  # stderr is a file
    if sys.platform != "linux":
        return f"neither memory nor files nor network can be closed to the image decoder on {sys.platform}"
    _lower(resource.RLIMIT_AS, MEMORY_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs = 38
    libc.prctl(no_new_privs, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # where it fails, what follows fails and says so
    return "; ".join(words for words in (_forbid_reading(libc), _forbid_calls(libc)) if words)


def _forbid_reading(libc: ctypes.CDLL) -> str:
    """Landlock (holds for good): Pillow and Python import late, so their folders stay readable; nothing else does.

    It also closes /proc/PID to whoever is inside, and from version 6 on signals in whatever way they are sent.
    """

    def call(number: int, *arguments: int) -> int:
        return int(libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))

    create, add, restrict, path_beneath, of_file, of_folder = 444, 445, 446, 1, 4, 12
    version = call(create, 0, 0, 1)
    if version < 1:
        return f"the files of this user stay readable to the image decoder; Landlock: {os.strerror(ctypes.get_errno())}"
    rights, size = LANDLOCK[min(version, len(LANDLOCK)) - 1]
    asked = ctypes.create_string_buffer(struct.pack("=QQQ", rights, 0, 3))  # 3: no signals or sockets to the outside
    rules = call(create, ctypes.addressof(asked), size, 0)
    pillow, library = os.path.dirname(Image.__file__), os.path.dirname(os.__file__)
    for path in (pillow, os.path.join(os.path.dirname(pillow), "pillow.libs"), library, os.path.dirname(library),
                 "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"):  # fmt: skip
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = ctypes.create_string_buffer(struct.pack("=Qi", of_folder if os.path.isdir(path) else of_file, opened))
        call(add, rules, path_beneath, ctypes.addressof(rule), 0)
        os.close(opened)
    if call(restrict, rules, 0):
        return f"files could not be closed to the image decoder: {os.strerror(ctypes.get_errno())}"
    os.close(rules)
    return ""


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _forbid_calls(libc: ctypes.CDLL) -> str:
    """A seccomp filter (needs no rights, holds for good): the calls in `SYSCALLS` fail with EPERM."""
    if platform.machine() not in SYSCALLS:
        return f"the network cannot be closed to the image decoder on {platform.machine()}"
    arch, calls, looked_into = SYSCALLS[platform.machine()]
    load, equal, at_least, give = 0x20, ONE, 0x35, 0x06
    allowed, refused = -2, -1
    program: list[tuple[int, int, int, int]] = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, 0x80000000)]  # kill
    program += [(load, 0, 0, 0), (at_least, refused, 0, 0x40000000)]  # x86-64's second numbering
    program += [(equal, refused, 0, call) for call in calls]
    for call, argument, test, values in looked_into:
        program += [(equal, 0, 1 + len(values), call), (load, 0, 0, 16 + 8 * argument)]  # its lower half
        program += [(test, refused, 0, value) for value in values[:-1]] + [(test, refused, allowed, values[-1])]
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)]  # allowed; refused
    packed = b"".join(
        struct.pack("=HBBI", code, *(jump if jump >= 0 else len(program) + jump - place - 1 for jump in jumps), value)
        for place, (code, *jumps, value) in enumerate(program)
    )
    steps = ctypes.create_string_buffer(packed, len(packed))
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(steps)))
    set_seccomp, filter_mode = 22, 2
    if libc.prctl(set_seccomp, *map(ctypes.c_ulong, (filter_mode, ctypes.addressof(fprog), 0, 0))):
        return f"the network could not be closed to the image decoder: {os.strerror(ctypes.get_errno())}"
    return ""


def _allow_cpu() -> None:
    """Start this image's CPU budget; past it the system kills the process (SIGXCPU)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    Image.MAX_IMAGE_PIXELS = options.max_pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.preinit()  # what `save` would import at the first image
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(0), "wb")
    write_frame(answers, {"ready": True, "missing": confine()})
    while (frame := read_frame(requests)) is not None:
        _allow_cpu()
        write_frame(answers, *answer(frame[1], options))


if __name__ == "__main__":
    main()
