"""Captions as words, as the Java tokenizer of COCO's caption evaluation cuts them, without Java.

That is Stanford's PTBTokenizer 3.4.1 with `-lowerCase`, less the marks that pycocoevalcap takes out. What captions hold
is cut the same: words, contractions, abbreviations, numbers, hyphens, marks. It is no tokenizer of
the whole Penn Treebank.
"""

from __future__ import annotations

import re
from functools import lru_cache

TAKEN_OUT = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
"""Marks that count for nothing. pycocoevalcap lists brackets as -LRB-, in capitals, and so leaves -lrb- in."""

_ABBREVIATED = (
    "jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|"
    "mr|mrs|ms|drs?|profs?|sens?|reps?|gov|gen|col|lt|capt|sgt|maj|cmdr|adm|pres|rev|hon|jr|sr|"
    "st|ste|ave|blvd|rd|mt|ft|pt|inc|corp|co|ltd|bros|etc|vs|al|no|nos|fig|dept|est|calif|conn|fla|mich|minn|okla|tenn|"
    "wis"
)
_ENCLITICS = r"(?i:'(?:s|m|d|re|ve|ll))"
_WORD = r"[^\W_]+"
_TOKEN = re.compile(
    rf"""
      (?P<split>(?i:cannot|gonna|gotta|wanna|gimme|lemme))\b
    | [^\W\d_]+'(?!(?i:s|m|d|re|ve|ll|t)\b)[^\W\d_]+                  # ho'ohu
    | \d{{1,2}}[-/]\d{{1,2}}[-/]\d{{2,4}}\b                              # a date
    | (?:\d{{1,4}}[ ])?\d{{1,4}}/\d{{1,4}}(?![\w/])                       # a fraction: 3/4, 22 3/4
    | (?P<negated>[^\W\d_]+?)(?=(?i:n't)\b) | (?i:n't)\b                          # do n't
    | {_ENCLITICS}(?!\w)
    | [dolDOL]'[^\W\d_]{{2,}}                                               # d'oeuvre
    | [^\W\d_](?:\.[^\W\d_])+(?:\.(?=\s|$))?(?!\w)                   # u.s., d.v.d
    | [A-HJ-Z]\.(?=\s+\S)                                                    # j. smith
    | [^\W\d_]+(?:\.[^\W\d_]+)+                                        # the missing blank of: a street.A bus
    | (?i:{_ABBREVIATED})\.(?!\w)
    | \d*(?:[.:,]\d+)+ (?![^\W\d_])                                     # 4:21, 1,000
    | [^\W_]+(?:-[^\W\d_]+){{0,2}}(?:/[^\W_]+(?:-[^\W\d_]+){{0,2}}){{1,2}}   # tub/shower
    | {_WORD}(?:[-_]{_WORD})+                                           # close-up
    | \d+(?:[.:,]\d+)+
    | {_WORD}
    | \.{{3,}} | -{{2,}} | \S
    """,
    re.VERBOSE,
)
_SPLITS = {"cannot": "can", "gonna": "gon", "gotta": "got", "wanna": "wan", "gimme": "gim", "lemme": "lem"}
_ESCAPED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"}


@lru_cache(maxsize=1 << 16)
def words(caption: str) -> tuple[str, ...]:
    """The words of a caption, lower case, without marks; one, such as `22 3/4`, may have a blank in it."""
    found: list[str] = []
    for match in _TOKEN.finditer(caption.replace("’", "'").replace("‘", "'")):
        token = match.group().lower()
        if match.group("split"):
            found += [_SPLITS[token], token[len(_SPLITS[token]) :]]
        else:
            found.append(_ESCAPED.get(token, token))
    return tuple(token for token in found if token not in TAKEN_OUT)
