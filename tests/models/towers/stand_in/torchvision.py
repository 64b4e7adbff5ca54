"""What timm imports of torchvision and does not use for towers, for it has no build that fits every torch."""

from __future__ import annotations

import enum
import sys
import types
from typing import Any

from torch import nn

__version__ = "0"
__path__: list[str] = []


class InterpolationMode(enum.Enum):
    """Of timm's and transformers' tables."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Empty(types.ModuleType):
    """Has a class of any name, for others to be derived from."""

    __path__: list[str] = []
    InterpolationMode = InterpolationMode

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


TRANSFORMS = ("transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional")
for _name in ("datasets", "io", "models", "ops", "ops.misc", "utils", *TRANSFORMS):
    sys.modules[f"torchvision.{_name}"] = Empty(f"torchvision.{_name}")
