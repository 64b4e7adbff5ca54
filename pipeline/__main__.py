"""The process of the command `sluice`."""

from __future__ import annotations

import gc


def main() -> None:
    """Load the command line, and look for garbage seldom: loading makes none, and a tenth of its time went there."""
    gc.set_threshold(200_000, 20, 20)
    from pipeline.cli import main as command

    command()


if __name__ == "__main__":
    main()
