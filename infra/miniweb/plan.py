"""What every page embeds and what was planted on it: page k from (pages, seed, mix, sides, scenes, words, k) alone.

Kinds are contiguous ranges of a permuted order (`permutation`), so that nothing is listed and nothing is remembered: a
million pages take no more memory than two hundred.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

from infra.miniweb import languages, texts
from infra.miniweb.captions import Caption, caption
from infra.miniweb.kinds import FACTS, Facts, Family, Kind
from infra.miniweb.mixes import ranges
from infra.miniweb.permutation import Permutation
from infra.miniweb.render import jpeg
from infra.miniweb.scenes import (
    ATTRIBUTES,
    CROWDS,
    SIDES,
    TINY,
    WORDS,
    Scene,
    Sides,
    another,
    draw_scene,
    simplified,
    taken,
)

FEWEST, MOST = 20, 1_000_000
SOURCED = (Kind.LOOK_ALIKE, Kind.REPEATED_URL, *(k for k, f in FACTS.items() if f.family is Family.COPY), Kind.MISMATCH)
"""Kinds that show, or tell of, the scene of a clean page; each takes pages that the ones before left, if it can."""
SAME_CAPTION = 0.5
"""Of the copies, those that keep the caption of their source; the others have another true one."""
EASY = 0.15
"""Of the mismatches, those with other colours: the rest have the same ones, bound otherwise."""
TRIES = 1000
BROKEN_HOST = "localhost"
"""The host whose robots.txt answers 503: another name of the same server, that needs no DNS."""
SEEN_EVERY = 20
"""Of the clean pages, one in so many has a sha256 in the table, so that having one tells nothing."""
FORBIDDEN_ADDRESSES = (
    "169.254.169.254", "10.0.0.7", "192.168.1.1", "172.16.0.9", "127.0.0.1", "127.1", "0x7f000001", "2130706433",
    "[::1]", "[::ffff:127.0.0.1]", "[fd00::1]", "100.100.100.200",
)  # fmt: skip
"""Private, link-local and loopback, in several spellings."""


@dataclass(frozen=True)
class Plan:
    """A web of `pages` pages. The same arguments are the same web, always.

    Raises `ValueError`, in one line, for what it cannot plan.
    """

    pages: int
    seed: int = 17
    mix: str = "web"
    sides: str = "small"
    evaluation: int = 200
    """How many images the evaluation set has, of which some are leaked."""
    scenes: str = "any"
    """How much is in them: `scenes.CROWDS`."""
    words: float = 0.0
    """Share of the scenes over which a word is written."""

    def __post_init__(self) -> None:
        if not FEWEST <= self.pages <= MOST:
            raise ValueError(f"pages is {self.pages:,}; expected {FEWEST} to {MOST:,}")
        if self.sides not in SIDES:
            raise ValueError(f"sides is {self.sides!r}; expected {', '.join(SIDES)}")
        if self.scenes not in CROWDS:
            raise ValueError(f"scenes is {self.scenes!r}; expected {', '.join(CROWDS)}")
        if not 0 <= self.words <= 1:
            raise ValueError(f"words is {self.words}; expected a share, 0 to 1")
        if self.evaluation < 1:
            raise ValueError(f"evaluation is {self.evaluation}; expected 1 image or more")
        ranges(self.mix, self.pages)

    def __len__(self) -> int:
        return self.pages

    def __iter__(self) -> Iterator["Page"]:
        """The pages in order of their numbers, one at a time."""
        return (self[number] for number in range(self.pages))

    def __getitem__(self, number: int) -> "Page":
        """Page `number`. Raises `IndexError` where there is none."""
        place = self._order.place(number)
        kind = next(kind for kind, places in self._ranges.items() if place in places)
        return Page(self, number, kind, place - self._ranges[kind].start)

    def of(self, kind: Kind) -> Iterator["Page"]:
        """The pages of one kind, in the order in which they were planned."""
        places = self._ranges.get(kind, range(0))
        return (Page(self, self._order.number(place), kind, place - places.start) for place in places)

    def find(self, path: str) -> "Page | None":
        """The page whose image a path of the server names, or would name; None where there is none."""
        head, _, name = path.removeprefix(f"/{self.seed}/").rpartition("/")
        if not path.startswith(f"/{self.seed}/") or not name.endswith(".jpg"):
            return None
        digits = name.removesuffix(".jpg")
        if len(digits) != 7 or not digits.isdecimal() or not digits.isascii() or int(digits) >= self.pages:
            return None
        page = self[int(digits)]
        return page if head in page.folders and page.kind is not Kind.REPEATED_URL else None

    def evaluation_scene(self, number: int) -> Scene:
        """What image `number` of the evaluation set shows."""
        return self.draw(f"evaluation/{self.seed}/{number}", SIDES[self.sides])

    def draw(self, seed: str, sides: Sides) -> Scene:
        """The scene of a seed, as this web has them."""
        scene, dice = draw_scene(seed, sides), random.Random(f"word/{seed}")
        if dice.random() < self.words:
            scene = replace(scene, written=dice.choice(WORDS))
        return simplified(scene) if self.scenes == "simple" else scene

    def evaluation_captions(self, number: int, count: int = 5) -> list[Caption]:
        """Different true captions of image `number` of the evaluation set."""
        dice = random.Random(f"evaluation/{self.seed}/{number}")
        scene, found = self.evaluation_scene(number), dict[str, Caption]()
        while len(found) < count:
            said = caption(scene, dice)
            found[said.text] = said
        return list(found.values())

    def source(self, kind: Kind, rank: int) -> "Page":
        """The clean page that the page of this kind and rank goes back to."""
        places = self._ranges[Kind.CLEAN]
        before = sum(len(self._ranges.get(other, ())) for other in SOURCED[: SOURCED.index(kind)])
        rank = (before + rank) % len(places)
        return Page(self, self._order.number(places[rank]), Kind.CLEAN, rank)

    @cached_property
    def _order(self) -> Permutation:
        return Permutation(self.pages, f"pages/{self.seed}")

    @cached_property
    def _ranges(self) -> dict[Kind, range]:
        return ranges(self.mix, self.pages)


@dataclass(frozen=True)
class Page:
    """One row of the table: an image, its caption, and what was planted on them."""

    plan: Plan
    number: int
    kind: Kind
    rank: int
    """Its place among the pages of its kind."""

    @property
    def facts(self) -> Facts:
        return FACTS[self.kind]

    @cached_property
    def source(self) -> "Page | None":
        """The clean page of which this one shows a copy or a variant, or whose caption it has."""
        return self.plan.source(self.kind, self.rank) if self.kind in SOURCED else None

    @property
    def leaked(self) -> int | None:
        """The number of the image of the evaluation set that it shows."""
        return self.rank % self.plan.evaluation if self.facts.family is Family.LEAK else None

    @property
    def scene(self) -> Scene:
        """What its image shows, or would show."""
        return self._planted[0]

    @property
    def changed(self) -> str | None:
        """What a look-alike's image, or the image of a mismatch, has otherwise than its source."""
        return self._planted[1]

    @property
    def caption(self) -> str:
        """What the table says."""
        return self._told[0]

    @property
    def language(self) -> str | None:
        """The ISO 639-1 code of a caption that describes something."""
        return self._told[1]

    @property
    def seen_sha256(self) -> str | None:
        """The digest under which its image was first seen, in hex; None for most: the table does not say."""
        if self.kind is Kind.CHANGED or (self.kind is Kind.CLEAN and self.rank % SEEN_EVERY == 0):
            return sha256(jpeg(self._first_seen)).hexdigest()
        return None

    @property
    def _first_seen(self) -> Scene:
        """What it showed when the table was made."""
        return self.plan.draw(f"{self.plan.seed}/{self.number}", SIDES[self.plan.sides])

    @cached_property
    def true_caption(self) -> str:
        """In English; the caption itself, where nothing is wrong with it."""
        if self.source and self.facts.family is Family.COPY and self.dice("same").random() < SAME_CAPTION:
            return self.source.true_caption
        return caption(self.scene, self.dice("caption")).text

    @property
    def folders(self) -> tuple[str, ...]:
        """Where below `/<seed>/` the server has its image: the first is where the table says."""
        match self.kind:
            case Kind.DISALLOWED:
                return ("private",)
            case Kind.REDIRECT:
                return ("", "moved")
            case _:
                return ("",)

    @property
    def path(self) -> str | None:
        """Where the table says that its image lies on its host; None where it says nothing."""
        if self.kind is Kind.NO_URL:
            return None
        owner = self.source if self.kind is Kind.REPEATED_URL and self.source else self
        return self.at(self.folders[0], owner.number)

    def at(self, folder: str, number: int | None = None) -> str:
        """The path of its image in one of its folders."""
        name = f"{self.number if number is None else number:07d}.jpg"
        return f"/{self.plan.seed}/{folder}/{name}" if folder else f"/{self.plan.seed}/{name}"

    def url(self, base: str) -> str | None:
        """What the table says, for a server at `base`: null or empty for `no_url`."""
        if self.path is None:
            return None if self.rank % 2 else ""
        match self.kind:
            case Kind.BAD_NAME:
                return f"http://no-such-host-{self.number}.invalid{self.path}"
            case Kind.BLOCKED_ADDRESS:
                return f"http://{FORBIDDEN_ADDRESSES[self.rank % len(FORBIDDEN_ADDRESSES)]}{self.path}"
            case Kind.ROBOTS_BROKEN:
                return base.replace("127.0.0.1", BROKEN_HOST) + self.path
            case Kind.BAD_TLS:
                return base.replace("http:", "https:") + self.path
            case _:
                return base + self.path

    def dice(self, what: str) -> random.Random:
        """Chance of its own for everything that is drawn of a page."""
        return random.Random(f"{what}/{self.plan.seed}/{self.number}")

    @cached_property
    def _planted(self) -> tuple[Scene, str | None]:
        sides, seed = SIDES[self.plan.sides], f"{self.plan.seed}/{self.number}"
        if self.leaked is not None:
            return self.plan.evaluation_scene(self.leaked), None
        if self.kind is Kind.LOOK_ALIKE and self.source:
            return one_change(self.source.scene, self.dice("look-alike"))
        if self.kind is Kind.MISMATCH and self.source:
            dice = self.dice("mismatch")
            found, changed = mismatched(self.source.scene, self._claimed, dice)
            return taken(replace(found, grain=seed), dice, sides), changed
        if self.source:
            return self.source.scene, None
        if self.kind is Kind.CHANGED:
            return self.plan.draw(f"{seed}/later", sides), None
        if self.kind is Kind.TINY:
            return self.plan.draw(seed, TINY), None
        if self.kind is Kind.BANNER:
            scene = self.plan.draw(seed, sides)
            return taken(scene, self.dice("banner"), replace(sides, spread=0.2), aspect=5.0), None
        return self.plan.draw(seed, sides), None

    @cached_property
    def _claimed(self) -> Caption:
        """What a mismatch claims: true of its source."""
        assert self.source is not None
        return caption(self.source.scene, self.dice("caption"))

    @cached_property
    def _told(self) -> tuple[str, str | None]:
        dice = self.dice("text")
        match self.kind:
            case Kind.MISMATCH:
                return self._claimed.text, "en"
            case Kind.CHANGED:
                return caption(self._first_seen, dice).text, "en"
            case Kind.BOILERPLATE:
                return texts.boilerplate(dice), None
            case Kind.SPAM:
                return texts.spam(dice), None
            case Kind.OTHER_LANGUAGE:
                code, text = languages.tell(self.scene, dice)
                return text, code
            case Kind.TRUNCATED_CAPTION:
                return texts.truncated(self.true_caption, dice), "en"
            case _:
                return self.true_caption, "en"


def one_change(scene: Scene, dice: random.Random) -> tuple[Scene, str]:
    """The scene with one attribute changed, and which: some tries of each in turn, for not every scene has a way to."""
    names = dice.sample(sorted(ATTRIBUTES), k=len(ATTRIBUTES))
    for turn in range(TRIES):
        name = names[turn // 4 % len(names)]
        found = ATTRIBUTES[name](scene, dice)
        if found is not None:
            return found, name
    raise AssertionError(f"no attribute of {scene} can be changed")


def mismatched(scene: Scene, claimed: Caption, dice: random.Random) -> tuple[Scene, str]:
    """Another scene of the same classes of objects of which a caption is false that is true of this one.

    And what it has otherwise: `colour`, or with the same colours bound otherwise `binding`. The caption comes first and
    the image is made to contradict it, so that captions of mismatches are worded as those of clean pages are.
    """
    recoloured = dice.random() < EASY
    while True:
        found = another(scene, dice, recoloured)
        if not claimed.true_of(found):
            return found, "colour" if recoloured else "binding"
