"""The process of the command `sluice`."""

from __future__ import annotations

import gc


def main() -> None:
    """Load the command line without looking for garbage on the way: modules stay, and a tenth of the time goes there."""
    gc.disable()
    from pipeline.cli import main as command

    gc.freeze()
    gc.enable()
    command()


if __name__ == "__main__":
    main()
