"""Decontamination: images of a pool that show what an evaluation set shows, by the name of the item that leaks."""

from stages.decontaminate.decontaminate import Decontaminate

__all__ = ["Decontaminate"]
