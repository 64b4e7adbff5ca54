"""The process of the command `sluice`."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Load the command line, without looking for garbage: loading makes none, and a tenth of its time went there."""
    gc.disable()
    from pipeline.cli import main as command

    if sys.argv[1:2] != ["explain"]:  # which is to answer at once, and is over before there is much of it
        gc.enable()
    command()


if __name__ == "__main__":
    main()
