"""What a careful detector would find: one box around every thing that a picture shows, with its name."""

from typing import Any

import pyarrow as pa

from infra.miniweb.kinds import Family, Kind
from infra.miniweb.plan import Page
from infra.miniweb.render import LINES, OUTLINES, things
from infra.miniweb.scenes import Scene

BOX = pa.struct([("label", pa.string()), ("box", pa.list_(pa.float64()))])
"""`box`: left, top, right and bottom, in shares of the sides."""
UNSEEN = (Family.DEAD, Family.FORBIDDEN, Family.HARMFUL)
"""Of whose pages nobody has an image."""


def boxes_of(page: Page) -> list[dict[str, Any]]:
    """Of the image behind a page; none where there is no picture of its scene. A copy that was cut at its edges has the
    boxes that it had before."""
    if page.facts.family in UNSEEN or page.kind is Kind.PLACEHOLDER:
        return []
    return boxes(page.scene)


def boxes(scene: Scene) -> list[dict[str, Any]]:
    """As `BOX`, group by group."""
    sides = (scene.width, scene.height)
    found = []
    for group in scene.groups:
        outline, beyond = OUTLINES[group.shape], LINES[group.texture] / 2
        for thing in things(scene, group, sides):
            corners = [
                (centre + thing.radius * (most(point[axis] for point in outline) + sign * beyond)) / sides[axis]
                for most, sign in ((min, -1), (max, 1))
                for axis, centre in enumerate((thing.x, thing.y))
            ]
            box = [round(min(max(edge, 0.0), 1.0), 4) for edge in corners]
            found.append({"label": f"{group.colour} {group.shape}", "box": box})
    return found
