"""What a caption says that can be asked: things with their number and colour, where they are, words to be read.

Rules over words, no grammar: what a rule is not sure of it leaves out, for a question with a wrong answer does more
harm than one that nobody asks. English only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COLOURS = frozenset((
    "red", "green", "blue", "yellow", "orange", "purple", "violet", "pink", "brown", "grey", "gray", "black",
    "white", "crimson", "scarlet", "turquoise", "beige", "golden", "silver", "maroon", "teal",
))  # fmt: skip
PLAIN = frozenset((
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "grey", "black", "white",
))  # fmt: skip
"""The colours of Berlin and Kay (1969): what is called by one is not called by another."""
SHADES = {"gray": "grey", "violet": "purple", "crimson": "red", "scarlet": "red", "maroon": "red", "golden": "yellow"}
"""Words for a colour that others call by its plain name."""
OTHER_LOOKS = frozenset((
    "small", "large", "big", "little", "tiny", "huge", "tall", "short", "long", "wide", "narrow", "old", "young",
    "plain", "solid", "striped", "stripy", "dotted", "spotted", "hollow", "outlined", "flat", "fading", "gradient",
    "speckled", "grainy", "checkered", "chequered", "rough", "uneven", "bright", "dark", "light", "pale", "round",
    "wooden", "empty", "open", "closed", "single", "exactly",
))  # fmt: skip
"""Adjectives that may stand between a number and what is counted."""
ARTICLES = frozenset((
    "a", "an",
))  # fmt: skip
VAGUE = frozenset((
    "the", "some", "several", "few", "many", "these", "those", "his", "her", "their", "its",
))  # fmt: skip
"""Words that begin a phrase and give no number."""
ENDS = frozenset((
    "a", "an", "the", "some", "several", "few", "and", "or", "but", "with", "without", "in", "on", "at", "of", "to",
    "from", "by", "for", "near", "next", "beside", "behind", "under", "over", "above", "below", "left", "right",
    "between", "against", "across", "through", "into", "onto", "around", "along", "is", "are", "was", "were", "be",
    "being", "been", "has", "have", "had", "that", "which", "who", "while", "as", "than", "there", "here", "it",
    "they", "he", "she", "its", "their", "his", "her", "this", "these", "those", "not", "toward", "towards",
    "about", "during", "per", "via", "within", "whose", "where", "when", "both", "either", "all", "any", "each",
    "every", "if", "then", "so", "because", "can", "may", "will", "would", "should", "do", "does", "did",
))  # fmt: skip
"""Words that end the name of a thing."""
PLURALS = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "mice": "mouse",
    "teeth": "tooth", "boxes": "box", "crosses": "cross", "rhombuses": "rhombus", "buses": "bus", "glasses": "glass",
    "dishes": "dish", "benches": "bench", "leaves": "leaf", "knives": "knife", "wolves": "wolf",
}  # fmt: skip
SINGULARS = {one: many for many, one in PLURALS.items()}
ALWAYS_SEVERAL = frozenset(("scissors", "trousers", "jeans", "shorts", "pants", "tongs", "pliers", "binoculars"))
UNSEEN = frozenset((
    "picture", "drawing", "image", "photo", "photograph", "illustration", "painting", "view", "figure", "diagram",
    "scene", "screenshot", "top", "bottom", "left", "right", "middle", "centre", "center", "corner", "side",
    "front", "part", "lot", "number", "kind", "type", "second", "minute", "hour", "day", "week", "month", "year",
    "decade", "century", "time", "percent", "degree", "most", "least", "other", "person", "page", "chapter",
    "third", "half", "quarter",
))  # fmt: skip
"""What a caption names and nobody asks for: the picture itself, its regions, words of measure."""
GROUNDS = frozenset(("background", "backdrop"))
"""Behind everything, so that nothing is asked of their number and place."""
LONGEST_NAME = 2
"""Words of a thing's name, at most."""
RELATIONS = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "higher up than": "lower down than",
    "lower down than": "higher up than",
    "in front of": "behind",
    "behind": "in front of",
}
"""How one thing stands to another, and what is then wrong."""
PLACE = re.compile(
    r"\b(?:in|at|on) the (?:(?:top|bottom|upper|lower) (?:left|right)(?: corner)?|top|bottom|left|right|middle|centre"
    r"|center|foreground|background)\b(?! of\b)"
)
QUOTED = re.compile(
    r"\b(?:says?|saying|reads?|reading|words?|text|titled|labell?ed|inscription|caption(?:ed)?|sign)\b[^\"“”.]{0,20}"
    r"[\"“]([^\"“”]{1,80})[\"”]",
    re.IGNORECASE,
)
MEDIA = {"photo": "photograph"} | {name: name for name in (
    "photograph", "painting", "drawing", "sketch", "engraving", "illustration", "cartoon", "diagram", "graph", "chart",
    "map", "screenshot", "micrograph",
)}  # fmt: skip
"""What a picture is, as captions begin -> as it is asked for."""
LOOKS = (
    "black[- ]and[- ]white", "colou?r(?:ful|ed)?", "old", "vintage", "historical", "close-up", "aerial", "stock",
    "vector", "oil", "pencil", "ink", "bar", "line", "pie", "flow", "frequency", "population", "scatter", "venn",
    "world", "road", "concept", "political", "simple", "detailed", "framed", "famous", "modern", "abstract", "digital",
    "line-art", "cross-sectional", "medical", "anatomical", "small", "large",
)  # fmt: skip
"""What may be said of a picture before it is named, as patterns. Other words may be who paints or holds it."""
MEDIUM = re.compile(
    r"(?:\([a-z]\) ?)?(?:this is )?(?:(?:an?|the|this|two|three|four|several|some) )?"
    rf"(?:(?:{'|'.join(LOOKS)}) ){{0,2}}({'|'.join(MEDIA)})s?(?: \(?[a-z]\)?)?,? "
    r"(?:of|showing|depicting|illustrating|comparing|in which|(?:(?:is|are) )?(?:titled|labell?ed|shown)"
    r"|(?:show|depict|illustrate|compare|display|represent|include|contain|capture|define)s?|ha(?:s|ve)(?! been)"
    r"|consists? of)\b"
)
"""Nothing but looks before what the picture is, and then its content."""
BROKEN_OFF = ("…", "...")
"""Follows a word of which perhaps only the half is there."""
WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*|[,.;:!?()\"“”]")


@dataclass(frozen=True)
class Thing:
    """A phrase such as `three small red circles`: what it names, in the singular, and what it says of it."""

    name: str
    several: bool
    count: int | None = None
    colour: str | None = None
    place: str | None = None

    @property
    def all(self) -> str:
        """What is counted: `red circles`, however many are told of."""
        return f"{self.colour} {plural(self.name)}" if self.colour else plural(self.name)

    @property
    def shown(self) -> str:
        """In words, with its colour: `red circles`."""
        noun = plural(self.name) if self.several else self.name
        return f"{self.colour} {noun}" if self.colour else noun


@dataclass(frozen=True)
class Relation:
    """`one` stands so to `other`."""

    one: Thing
    words: str
    other: Thing


@dataclass(frozen=True)
class Said:
    """What a caption says."""

    things: tuple[Thing, ...] = ()
    relations: tuple[Relation, ...] = ()
    readings: tuple[str, ...] = ()
    medium: str | None = None
    """What kind of picture it is, where the caption begins with that."""


def said_by(caption: str) -> Said:
    """Everything that the rules find."""
    found = list(_things(caption.lower()))
    relations = []
    for (one, _, end), (other, start, _) in pairwise(found):
        between = " ".join(WORD.findall(caption.lower()[end:start]))
        words = between.removeprefix("is ").removeprefix("are ")
        if words in RELATIONS and not {one.name, other.name} & GROUNDS and one.shown != other.shown:
            relations.append(Relation(one, words, other))
    quoted = tuple(match[1].strip(" ,;:") for match in QUOTED.finditer(caption))
    medium = MEDIUM.match(caption.lower())
    things = tuple(thing for thing, _, _ in found)
    return Said(things, tuple(relations), quoted, None if medium is None else MEDIA[medium[1]])


def _things(text: str) -> Iterator[tuple[Thing, int, int]]:
    """Every phrase that names a thing, with its first character and its end."""
    words = [(match[0], match.start(), match.end()) for match in WORD.finditer(text)]
    place = 0
    while place < len(words):
        found = _phrase(words, place)
        if found is None:
            place += 1
            continue
        thing, after = found
        start, end = words[place][1], words[after - 1][2]
        place = after
        if text[end:].lstrip().startswith(BROKEN_OFF):
            continue
        where = PLACE.match(text, end + 1)
        yield (thing if where is None else replace(thing, place=where[0])), start, end


def _phrase(words: Sequence[tuple[str, int, int]], place: int) -> tuple[Thing, int] | None:
    """The phrase that begins at a word, and the place after it; None where none begins there."""
    at, count, several, begun = place, None, None, False
    while at < len(words):
        word = words[at][0]
        if word in ARTICLES and not begun:
            count, several = 1, False
        elif word in VAGUE and at - place <= 1:
            count, several = None, (None if word == "the" else True)
        elif (number := number_of(word)) is not None and number > 0:
            count, several = number, number > 1
        else:
            break
        begun = True
        at += 1
    colour = None
    while at < len(words) and (words[at][0] in COLOURS or words[at][0] in OTHER_LOOKS):
        if words[at][0] in COLOURS:
            if colour is not None:  # of two colours, neither is the thing's
                return None
            colour = words[at][0]
        begun = True
        at += 1
    if not begun:
        return None
    name: list[str] = []
    if at > place and words[at - 1][0] == "round" and at < len(words) and words[at][0] in ("shape", "shapes"):
        name.append("round")  # `round` looks like an adjective, and is half of a name
    while at < len(words) and words[at][0] not in ENDS and words[at][0][0].isalpha():
        if name and words[at][0].endswith(("ing", "ed")):  # what it does, and not what it is
            break
        name.append(words[at][0])
        at += 1
    if not 1 <= len(name) <= LONGEST_NAME or any(word in COLOURS for word in name):
        return None
    noun = " ".join(name)
    ends_plural = noun != singular(noun)
    if several is None:
        several = ends_plural
    if several != ends_plural or singular(noun) in UNSEEN:
        return None
    if words[place][0] in ARTICLES and colour is None:
        count = None  # `a crowd` says nothing of how many crowds there are; `a red star` is one to be seen
    return Thing(singular(noun), several, count, colour), at


def number_of(word: str) -> int | None:
    """`three` and `3` as 3."""
    if word in NUMBERS:
        return NUMBERS.index(word)
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 2 else None


def in_words(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def singular(noun: str) -> str:
    first, space, last = noun.rpartition(" ")
    if last in ALWAYS_SEVERAL:
        one = last
    elif last in PLURALS:
        one = PLURALS[last]
    elif last.endswith("ies") and len(last) > 4:
        one = f"{last[:-3]}y"
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        one = last[:-1]
    else:
        one = last
    return f"{first}{space}{one}"


def plural(noun: str) -> str:
    first, space, last = noun.rpartition(" ")
    if last in ALWAYS_SEVERAL:
        many = last
    elif last in SINGULARS:
        many = SINGULARS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{first}{space}{many}"


def is_the(thing: Thing) -> str:
    """Begins a question of yes or no, or of one thing or another."""
    return f"{'Are' if thing.several else 'Is'} the {thing.shown}"


def which_colour(thing: Thing, dice: Random) -> str:
    """Asks for it, without saying it."""
    noun, be, do = (plural(thing.name), "are", "do") if thing.several else (thing.name, "is", "does")
    return dice.choice((f"What colour {be} the {noun}?", f"Which colour {do} the {noun} have?"))


def how_many(thing: Thing, by_name: bool, dice: Random) -> str:
    """Asks for the number without saying it, and where the name alone says of what, now and then without the colour."""
    several = plural(thing.name) if by_name and dice.random() < 0.5 else thing.all
    return dice.choice((f"How many {several} are there?", f"What is the number of {several}?"))
