"""What can be measured of a caption without a model: length, letters, repetition, marks of machine-made text."""

import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import chain

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SluiceError
from pipeline.stage import Batch, Device, File, PartStage

LETTER, UPPER, DIGIT, CONTROL, BIDI, IDEOGRAPH = (1 << bit for bit in range(6))
"""What a code point is, as bits of one byte."""

IDEOGRAPHS = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
              (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF))  # fmt: skip
"""Han, Hiragana and Katakana: scripts without spaces, in which every character counts as a word."""
IDEOGRAPH_PATTERN = "[" + "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in IDEOGRAPHS) + "]"
BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Embeddings, overrides, isolates (Boucher & Anderson 2023); the harmless marks of Hebrew and Arabic do not count."""
WHITE_CONTROLS = "\t\n\r"

URL = r"(?:\b(?:https?|ftp)://|\bwww\.)\S"
FILENAME = (
    r"^\s*(?:[^\s/]+(?: [^\s/]+){0,3}\.(?:jpe?g|png|gif|webp|avif|heic|bmp|tiff?|svg|ico|psd|pdf)"
    r"|(?:img|dsc[fn]?|dcim|pict|pxl|mvi|vid|scan|screenshot)[-_ ]?\d[-_\d]{2,})\s*$"
)
AROUND_WORDS = (
    "".join(chr(code) for code in range(33, 127) if not chr(code).isalnum()) + "«»¡¿“”„‘’‚‹›…–—·•、。，！？：；「」（）"
)
AROUND_PHRASES = AROUND_WORDS + "0123456789 "
UNEVEN_SPACE = r"[\t\n\v\f\r\x{a0}\x{3000}]|  "
PHRASES = (
    "image", "an image", "image of", "images", "img", "photo", "a photo", "photos", "photograph", "picture",
    "a picture", "pictures", "pic", "thumbnail", "thumb", "icon", "logo", "banner", "avatar", "profile picture",
    "placeholder", "untitled", "no image", "no image available", "no photo", "image not available", "image not found",
    "page not found", "default image", "featured image", "product image", "main image", "image caption",
    "image description", "alt text", "image may be subject to copyright", "click here", "click here to enlarge",
    "click to enlarge", "click image to enlarge", "click on image to enlarge", "click for larger image",
    "click to zoom", "enlarge image", "view larger image", "view full size", "view image", "see more", "read more",
    "learn more", "download", "share", "loading", "advertisement", "slide", "figure", "screenshot", "cover",
    "background", "null", "none", "undefined", "n/a", "all rights reserved", "facebook", "twitter", "instagram",
    "pinterest", "share on facebook",
)  # fmt: skip
"""What stands on the web where a description should; a change of it asks for another `revision`."""


class TextQuality(PartStage):
    """Add eleven measures to every caption; null where the caption is null. Shares of nothing are 0.

    - `characters`: code points.
    - `words`: what stands between white space; every Han, Hiragana or Katakana character is a word of its own. Scripts
      without spaces of other kinds (Thai, Khmer, …) count one word per run.
    - `letters_share`, `digits_share`: of the characters, those that are letters (Unicode L, and the marks M that
      complete them) or decimal digits (Nd).
    - `upper_share`: of the letters, those in upper case.
    - `repeated_word_share`: of the words that hold more than punctuation, those that stood in the caption before,
      whatever their case and the punctuation around them.
    - `has_url`: http, https or ftp, or `www.`; a bare domain is not told from a missing space.
    - `looks_like_filename`: up to four words that end like an image file, or a camera's counter (`IMG_1234`).
    - `control_characters`: Unicode Cc, NUL included, without tab and line ends.
    - `bidi_controls`: characters that make text read in another order than it is stored.
    - `boilerplate`: the whole caption is one of the phrases, whatever its case and the digits and marks around it.
    """

    promise = "pure"
    grain = "caption"
    reads = frozenset({"caption"})
    adds = pa.schema(
        [
            ("characters", pa.int32()),
            ("words", pa.int32()),
            ("letters_share", pa.float32()),
            ("digits_share", pa.float32()),
            ("upper_share", pa.float32()),
            ("repeated_word_share", pa.float32()),
            ("has_url", pa.bool_()),
            ("looks_like_filename", pa.bool_()),
            ("control_characters", pa.int32()),
            ("bidi_controls", pa.int32()),
            ("boilerplate", pa.bool_()),
        ]
    )

    boilerplate: File | None = None
    """Phrases that say nothing of an image, one a line, UTF-8; None takes `PHRASES`."""

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        phrases = pc.unique(normalised(pc.utf8_lower(pa.array(self._phrases(), pa.large_string()))))
        phrases = phrases.filter(pc.not_equal(phrases, ""))
        if not len(phrases):
            raise SluiceError(f"{self.boilerplate}: no phrase in it; expected one a line, with a letter in it")

        def measures(batch: Batch) -> pa.Table:
            captions = batch.table["caption"].cast(pa.large_string()).combine_chunks()
            columns = measure(pc.fill_null(captions, ""), phrases)
            absent = _true(pc.is_null(captions))
            typed = [columns[field.name].astype(field.type.to_pandas_dtype()) for field in self.adds]
            return pa.table([pa.array(column, mask=absent) for column in typed], schema=self.adds)

        return measures

    def _phrases(self) -> list[str]:
        if self.boilerplate is None:
            return list(PHRASES)
        with fsspec.open(self.boilerplate, "rt", encoding="utf-8") as lines:
            return [str(line) for line in lines]


def measure(captions: pa.Array, phrases: pa.Array) -> dict[str, npt.NDArray[np.generic]]:
    """All measures of large_string captions without nulls; the phrases are `normalised`."""
    kinds, bounds = code_points(captions)
    characters = np.diff(bounds)
    present = np.bitwise_or.reduce(kinds)

    def count(kind: int) -> npt.NDArray[np.int64]:
        if not present & kind:
            return np.zeros(len(captions), np.int64)
        here = np.append((kinds & kind) != 0, False)  # one more, since a last empty caption begins behind the end
        return np.where(characters > 0, np.add.reduceat(here, bounds[:-1], dtype=np.int64), 0)

    letters, lower = count(LETTER), pc.utf8_lower(captions)
    words, repeated = _words(_replaced(captions, count(IDEOGRAPH) > 0, IDEOGRAPH_PATTERN, r" \0 "))
    return {
        "characters": characters,
        "words": words,
        "letters_share": _share(letters, characters),
        "digits_share": _share(count(DIGIT), characters),
        "upper_share": _share(count(UPPER), letters),
        "repeated_word_share": repeated,
        "has_url": _true(pc.match_substring_regex(lower, URL)),
        "looks_like_filename": _true(pc.match_substring_regex(lower, FILENAME)),
        "control_characters": count(CONTROL),
        "bidi_controls": count(BIDI),
        "boilerplate": _true(pc.is_in(normalised(lower), phrases)),
    }


def code_points(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The kind of every code point of all texts in a row, and where each text begins; the last bound is the end."""
    bounds = np.concatenate([[0], np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False))]).astype(np.int64)
    if not bounds[-1]:
        return np.empty(0, np.uint8), bounds
    starts = np.frombuffer(texts.buffers()[1], np.int64)
    first, last = starts[texts.offset], starts[texts.offset + len(texts)]
    joined = texts.buffers()[2].slice(first, last - first).to_pybytes().decode()
    return _kinds()[np.frombuffer(joined.encode("utf-32-le"), np.uint32)], bounds


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """The bits of every code point: a table of 1.1 MB, made once per process, is faster than any regular expression."""
    of_category = {"Lu": LETTER | UPPER, "Lt": LETTER | UPPER, "Nd": DIGIT, "Cc": CONTROL}
    of_category |= dict.fromkeys(("Ll", "Lm", "Lo", "Mn", "Mc", "Me"), LETTER)
    kinds = np.zeros(0x110000, np.uint8)
    for code in chain(range(0x40000), range(0xE0000, 0xE1000)):  # the other planes are empty or private
        kinds[code] = of_category.get(unicodedata.category(chr(code)), 0)
    kinds[[ord(character) for character in WHITE_CONTROLS]] = 0
    kinds[[ord(character) for character in BIDI_CONTROLS]] |= BIDI
    for first, last in IDEOGRAPHS:
        kinds[first : last + 1] |= IDEOGRAPH
    return kinds


def _words(captions: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The number of words of every caption, and the share of those that repeat an earlier one."""
    split = pc.utf8_split_whitespace(captions)
    rows_w, words = pc.list_parent_indices(split).to_numpy(), pc.list_flatten(split).dictionary_encode()
    code_w = words.indices.to_numpy()
    bare = pc.utf8_trim(pc.utf8_lower(words.dictionary), AROUND_WORDS).dictionary_encode()  # each distinct word once
    bare_w = bare.indices.to_numpy()[code_w]
    is_word, is_bare = (_true(pc.not_equal(side, "")) for side in (words.dictionary, bare.dictionary))
    kinds = max(len(is_bare), 1)
    seen = np.sort((rows_w * kinds + bare_w)[is_bare[bare_w]])  # sorted: np.unique hashes, and is 80 times slower
    repeats = _per_row(seen[1:][seen[1:] == seen[:-1]] // kinds, captions)
    return _per_row(rows_w[is_word[code_w]], captions), _share(repeats, _per_row(seen // kinds, captions))


def _per_row(rows: npt.NDArray[np.int64], captions: pa.Array) -> npt.NDArray[np.int64]:
    return np.bincount(rows, minlength=len(captions)).astype(np.int64)


def normalised(lower: pa.Array) -> pa.Array:
    """Lower-case text with single spaces, and without the digits and marks around it."""
    even = _replaced(lower, _true(pc.match_substring_regex(lower, UNEVEN_SPACE)), r"[\s\x{a0}\x{3000}]+", " ")
    return pc.utf8_trim(even, AROUND_PHRASES)


def _replaced(texts: pa.Array, rows: npt.NDArray[np.bool_], pattern: str, replacement: str) -> pa.Array:
    """Replace in the rows that need it: replacing in all of them would take longer than everything else."""
    if not rows.any():
        return texts
    mask = pa.array(rows)
    return pc.replace_with_mask(texts, mask, pc.replace_substring_regex(texts.filter(mask), pattern, replacement))


def _share(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return part / np.maximum(whole, 1)


def _true(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
