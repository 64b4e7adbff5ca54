"""Words of a list in captions: slurs, adult terms, brands, whatever the owner of the list wants to know of.

    - stages.word_lists.WordList: {words: lists/toxic_en.txt, name: toxic_words}
    …
    - civil: len(toxic_words) = 0

No list is shipped: what a word means depends on the task, the language and the year.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

import ahocorasick
import fsspec
import pyarrow as pa
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import Batch, Device, File, PartStage

SPACES = re.compile(r"\s+")
UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""How the names of characters begin whose scripts put no space between words."""


class WordList(PartStage):
    """Add the terms of a list that a caption holds: each once, in the order of the text; none is [], no caption null.

    Terms match whole words, whatever their case, width and accents' encoding (casefolded, NFKC), and any white space
    matches any other: `Ass` is found in `ASS.`, not in `grass`. In scripts without spaces they match anywhere.
    """

    promise = "pure"
    grain = "caption"
    reads = frozenset({"caption"})

    words: File
    """One term a line, of one or more words, UTF-8; blank lines and those that begin with `#` do not count."""
    name: str = Field(default="listed_words", pattern=r"^[a-z][a-z0-9_]*$")
    """The column; several lists in one DAG need several."""

    def gives(self) -> pa.Schema:
        return pa.schema([(self.name, pa.list_(pa.string()))])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        automaton = _automaton(self.words)

        def look(batch: Batch) -> pa.Table:
            captions = batch.table["caption"].to_pylist()
            found = [None if text is None else list(dict.fromkeys(terms_in(text, automaton))) for text in captions]
            return pa.table([pa.array(found, pa.list_(pa.string()))], schema=self.gives())

        return look


def folded(text: str) -> str:
    """The text as it is compared: NFKC, casefolded, white space single."""
    even = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return SPACES.sub(" ", even).strip()


def terms_in(text: str, automaton: ahocorasick.Automaton) -> Iterator[str]:
    """The terms that stand in a text as whole words, by where they end."""
    even = folded(text)
    for end, term in automaton.iter(even):
        if _bound(even, end + 1 - len(term)) and _bound(even, end + 1):
            yield term


def _automaton(words: str) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    with fsspec.open(words, "rt", encoding="utf-8") as lines:
        try:
            terms = [folded(line) for line in lines if not line.lstrip().startswith("#")]
        except UnicodeDecodeError as error:
            raise SluiceError(
                f"words: {words} is no UTF-8 ({error.reason} at byte {error.start}); save it as such"
            ) from None
    for term in filter(None, terms):
        automaton.add_word(term, term)
    if not len(automaton):
        raise SluiceError(f"words: {words} holds no term; expected one a line")
    automaton.make_automaton()
    return automaton


def _bound(text: str, place: int) -> bool:
    """Whether a word may begin or end at a place: unless both of its neighbours are of one word."""
    return not (0 < place < len(text) and all(map(_joins, text[place - 1 : place + 1])))


def _joins(character: str) -> bool:
    """Whether a character is part of a word whose ends are marked."""
    word = character == "_" or unicodedata.category(character)[0] in "LMN"
    return word and not unicodedata.name(character, "").startswith(UNSPACED)
