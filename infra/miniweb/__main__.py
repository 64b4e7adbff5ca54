"""The command line of the small local web: writes the table of URLs and the answer key, then serves.

python -m infra.miniweb DIR [--pages 2400] [--seed 17] [--mix web] [--sides small] [--port 18080] [-- COMMAND…]
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from infra.miniweb import evaluation
from infra.miniweb.mixes import MIXES
from infra.miniweb.plan import FEWEST, MOST
from infra.miniweb.scenes import CROWDS, SIDES
from infra.miniweb.server import CannotListen
from infra.miniweb.table import KEY, TABLE
from infra.miniweb.web import Miniweb

PROCESSES = os.cpu_count() or 1


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted, or while the command after `--` runs; gives its exit status."""
    own, command = _split(arguments)
    options = _parser().parse_args(own)
    key = options.key or Path(os.path.abspath(options.folder)).parent / "key" / KEY
    web = Miniweb(
        options.folder,
        pages=options.pages,
        seed=options.seed,
        mix=options.mix,
        sides=options.sides,
        scenes=options.scenes,
        port=options.port,
        key=key,
        processes=options.processes,
        cached_mb=options.cached_mb,
        boxes=options.boxes,
        words=options.words,
    )
    try:
        with web:
            if options.evaluation is not None:
                evaluation.write(web.pages, options.evaluation)
            told = f"miniweb: {options.pages} pages on {web.base}, listed in {options.folder}/{TABLE}, answers in {key}"
            print(told if command else f"{told}; Ctrl-C ends it", file=sys.stderr, flush=True)
            return _run(command) if command else _wait()
    except CannotListen as error:
        print(error, file=sys.stderr)
        return 2


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" not in arguments:
        return arguments, []
    middle = list(arguments).index("--")
    return arguments[:middle], arguments[middle + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.miniweb", usage="%(prog)s DIR [options] [-- COMMAND…]", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help=f"where {TABLE} is written")
    parser.add_argument("--pages", type=_pages, default=2400, help="rows of the table (default 2400)")
    parser.add_argument("--seed", type=int, default=17, help="another seed, another web (default 17)")
    parser.add_argument("--mix", choices=MIXES, default="web", help="how much of what is planted (default web)")
    parser.add_argument("--sides", choices=SIDES, default="small", help="how large the images are (default small)")
    parser.add_argument("--scenes", choices=CROWDS, default="any", help="how much is in an image (default any)")
    parser.add_argument(
        "--boxes", action="store_true", help="a column with a box around every thing, as detectors find"
    )
    parser.add_argument(
        "--words", type=_share, default=0.0, metavar="SHARE", help="how many images have a word over them (default 0)"
    )
    parser.add_argument("--port", type=_port, default=18080, help="port on 127.0.0.1, 0 for a free one (default 18080)")
    parser.add_argument("--key", type=Path, help=f"the file of the answers (default DIR/../key/{KEY})")
    parser.add_argument("--evaluation", type=Path, metavar="EVALUATION", help="where to write the evaluation set too")
    parser.add_argument(
        "--processes", type=int, default=PROCESSES, help="that render, 0 for threads (default: all cores)"
    )
    parser.add_argument("--cached-mb", type=int, default=64, help="of images kept once rendered (default 64)")
    return parser


def _pages(text: str) -> int:
    if not text.isdecimal() or not FEWEST <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pages; expected {FEWEST} to {MOST:,}")
    return int(text)


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:  # which no NaN is
            return share
    raise argparse.ArgumentTypeError(f"{text!r} is no share; expected 0 to 1")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; expected 0 to 65535")
    return int(text)


def _wait() -> int:
    """Until Ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: ended.set())
    ended.wait()
    return 0


def _run(command: Sequence[str]) -> int:
    """The exit status of the command as a shell gives it: 127 where there is none, 128 + n after signal n."""
    signal.signal(signal.SIGINT, _leave_to_the_child)
    try:
        child = subprocess.Popen(command)  # noqa: S603 - the user's own command, no shell between
    except OSError as error:
        print(f"cannot run {command[0]!r}: {error.strerror}; name a command after --", file=sys.stderr)
        return 127
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status


def _leave_to_the_child(number: int, frame: FrameType | None) -> None:
    """Ctrl-C reaches the command as well: it decides when to end, and the web must stay up until then."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
