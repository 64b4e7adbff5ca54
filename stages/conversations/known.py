"""What all captions of an image say together: which words mean one thing in it, and what one of them denies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from stages.conversations.phrases import RELATIONS, Relation, Said, Thing


class Known:
    """Captions of one image. They may tell of different things, and of the same in other words."""

    def __init__(self, captions: Sequence[Said]) -> None:
        self._captions = captions

    def _called(self, thing: Thing) -> Iterator[tuple[int, Thing]]:
        """With the number of its caption, all that the words for a thing fit: `star` fits a red one, too."""
        for number, said in enumerate(self._captions):
            for other in said.things:
                if other.name == thing.name and thing.colour in (None, other.colour):
                    yield number, other

    def meant(self, thing: Thing) -> bool:
        """Whether its words fit one thing, or one group, in every caption, and captions agree on how many and where."""
        fitting = list(self._called(thing))
        if any(len(list(own)) > 1 for _, own in groupby(fitting, key=lambda pair: pair[0])):
            return False
        things = [other for _, other in fitting]
        counts, places = ({getattr(other, part) for other in things} - {None} for part in ("count", "place"))
        colours = {other.colour for other in things} - {None}
        return len({other.several for other in things}) == 1 and max(map(len, (counts, places, colours))) <= 1

    def colours(self, name: str) -> set[str]:
        """Of all that is called so, as far as they are told."""
        return {thing.colour for said in self._captions for thing in said.things if thing.name == name and thing.colour}

    def names(self, colour: str) -> set[str]:
        """Of all that have the colour, backgrounds among them."""
        return {thing.name for said in self._captions for thing in said.things if thing.colour == colour}

    def media(self) -> set[str]:
        """What kinds of picture it is said to be."""
        return {said.medium for said in self._captions if said.medium is not None}

    def relations(self, one: Thing, other: Thing) -> set[str]:
        """How the one stands to the other, also as told from the other's side."""
        ends = (one.name, one.colour), (other.name, other.colour)
        told = set()
        for relation in (relation for said in self._captions for relation in said.relations):
            found = (relation.one.name, relation.one.colour), (relation.other.name, relation.other.colour)
            if found == ends:
                told.add(relation.words)
            elif found == ends[::-1]:
                told.add(RELATIONS[relation.words])
        return told

    def undenied(self, relation: Relation) -> bool:
        """Whether no caption says the opposite."""
        return RELATIONS[relation.words] not in self.relations(relation.one, relation.other)
