"""Which entries of a list of concepts a caption holds: MetaCLIP's substring matching (Xu et al. 2023, section 3.2).

As in the code that its authors released, blanks are put around the text, around every entry and around `, . ; : ? ! ``,
and white space becomes blanks: an entry matches where it stands between blanks, as it is written. Theirs spaces the
text only, so that an entry with one of these marks (`St. Louis`) never matches; here both are spaced alike.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache

import ahocorasick
import fsspec

from pipeline.errors import SluiceError

SPACED = str.maketrans({**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})


def spaced(text: str) -> str:
    """The text as it is compared."""
    return f" {text} ".translate(SPACED)


class Matcher:
    """Finds all entries in one pass over a text, however many they are (Aho & Corasick 1975)."""

    def __init__(self, entries: Iterable[str], lowercase: bool = False) -> None:
        self._lowercase = lowercase
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, entry in enumerate(entries):
            key = spaced(entry.lower() if lowercase else entry)
            if key not in self._automaton:  # two that differ in nothing that counts are one, the first
                self._automaton.add_word(key, number)
        self._automaton.make_automaton()

    def of(self, text: str) -> list[int]:
        """The numbers of the entries that it holds, each once, in order."""
        key = spaced(text.lower() if self._lowercase else text)
        return sorted({number for _, number in self._automaton.iter(key)})


@lru_cache(maxsize=2)
def matcher_of(path: str, lowercase: bool) -> Matcher:
    """The matcher of a file of entries, made once per worker; `read_concepts` says what may go wrong."""
    return Matcher(read_concepts(path), lowercase)


@lru_cache(maxsize=2)
def read_concepts(path: str) -> Sequence[str]:
    """The entries of a file, in its order: one a line, or a JSON list as MetaCLIP's `metadata.json`; each once.

    Raises `SluiceError` for a file that is neither, or that has none.
    """
    with fsspec.open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SluiceError(
            f"concepts: {path} is no UTF-8 ({error.reason} at byte {error.start}); save it as such"
        ) from None
    entries = _from_json(path, text) if path.endswith(".json") else text.splitlines()
    found = tuple(dict.fromkeys(entry.strip() for entry in entries if entry.strip()))
    if not found:
        raise SluiceError(f"concepts: {path} holds no concept; expected one a line, or a JSON list of them")
    return found


def _from_json(path: str, text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SluiceError(f"concepts: {path} is no JSON ({error}); expected a list of texts") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise SluiceError(f'concepts: {path} holds {text[:40]!r}…; expected a list of texts such as ["red fox"]')
    return found
