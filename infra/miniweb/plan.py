"""What every page of the web embeds and which damage is planted on it, from (pages, seed) alone.

A new kind of damage is a member of `Damage`, its share here, and its answer in `infra.miniweb.web`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from infra.miniweb.scenes import SIDES, Scene, captions, draw_scene

TINY_SIDES = (16, 63)


class Damage(StrEnum):
    """What is wrong with the image of a page. No address tells it."""

    NONE = "none"
    NOT_FOUND = "not_found"
    SERVER_ERROR = "server_error"
    HANG_UP = "hang_up"
    """The connection is closed without an answer."""
    HTML = "html"
    """A web page under the name of an image."""
    TRUNCATED = "truncated"
    """The first 60 % of a JPEG, sent as if they were the whole."""
    TINY = "tiny"
    """Both sides below 64 px."""
    COPY = "copy"
    """The bytes of another page's image under an address of their own."""
    REPEAT = "repeat"
    """The address of another page's image, with another caption."""
    NO_URL = "no_url"
    """A null or empty URL."""


SHARES: dict[Damage, float] = {
    Damage.NOT_FOUND: 0.05,
    Damage.SERVER_ERROR: 0.01,
    Damage.HANG_UP: 0.01,
    Damage.HTML: 0.02,
    Damage.TRUNCATED: 0.01,
    Damage.TINY: 0.05,
    Damage.COPY: 0.03,
    Damage.REPEAT: 0.05,
    Damage.NO_URL: 0.005,
}
"""Of all pages, rounded to whole pages; the rest is undamaged."""

BOILERPLATE_SHARE = 0.1
"""Of all pages: those whose caption says nothing of the image, whatever the state of the image is."""
BOILERPLATE = (
    "IMG_{n}.jpg", "DSC0{n}.JPG", "photo-{n}.png", "image", "Image {n}", "photo", "picture", "untitled", "thumbnail",
    "logo", "click here to enlarge", "Click to enlarge", "image may be subject to copyright", "loading...",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """One row of the table: an image, its caption, and what is wrong with them."""

    number: int
    damage: Damage
    source: int
    """The page whose scene is shown: its own number, but for a copy or a repeat."""
    boilerplate: bool
    seed: int

    @property
    def scene(self) -> Scene:
        """What its image shows, or would show."""
        return draw_scene(self.seed, self.source, TINY_SIDES if self.damage is Damage.TINY else SIDES)

    @property
    def path(self) -> str | None:
        """Where its image lies on the server."""
        if self.damage is Damage.NO_URL:
            return None
        return f"/{self.seed}/{self.source if self.damage is Damage.REPEAT else self.number:07d}.jpg"

    @property
    def caption(self) -> str:
        """Boilerplate, or true of the scene; a copy and a repeat have another wording than their source has."""
        dice = random.Random(f"caption/{self.seed}/{self.source}")
        if self.boilerplate:
            dice = random.Random(f"boilerplate/{self.seed}/{self.number}")
            return dice.choice(BOILERPLATE).format(n=dice.randint(1000, 9999))
        wordings = captions(self.scene)
        turn = dice.randrange(len(wordings)) + (self.source != self.number)
        return wordings[turn % len(wordings)]


def plan(pages: int, seed: int) -> tuple[Page, ...]:
    """The pages in order of their numbers, with exactly the shares of `SHARES`, scattered at random."""
    dice = random.Random(f"plan/{seed}")
    order = list(range(pages))
    dice.shuffle(order)
    damages = dict.fromkeys(order, Damage.NONE)
    waiting = iter(order)
    for damage, share in SHARES.items():
        for _ in range(round(share * pages)):
            damages[next(waiting)] = damage
    whole = sorted(number for number, damage in damages.items() if damage is Damage.NONE)
    sources = _sources(damages, whole, dice)
    captioned = sorted(number for number, damage in damages.items() if damage not in (Damage.REPEAT, Damage.NO_URL))
    mute = set(dice.sample(captioned, k=round(BOILERPLATE_SHARE * pages)))
    return tuple(
        Page(number, damages[number], sources.get(number, number), number in mute, seed) for number in range(pages)
    )


def _sources(damages: dict[int, Damage], whole: Sequence[int], dice: random.Random) -> dict[int, int]:
    """For every copy and repeat an undamaged page, each its own: no image has more than two addresses or captions."""
    needing = sorted(number for number, damage in damages.items() if damage in (Damage.COPY, Damage.REPEAT))
    return dict(zip(needing, dice.sample(whole, k=len(needing)), strict=True))
