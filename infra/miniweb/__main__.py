"""The command line of the small local web: writes the table of URLs, then serves.

python -m infra.miniweb DIR [--pages 2400] [--seed 17] [--port 18080] [-- COMMAND…]
"""

import argparse
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from infra.miniweb.server import CannotListen
from infra.miniweb.web import TABLE, Miniweb


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted, or while the command after `--` runs; gives its exit status."""
    own, command = _split(arguments)
    options = _parser().parse_args(own)
    web = Miniweb(options.folder, pages=options.pages, seed=options.seed, port=options.port)
    try:
        with web:
            told = f"miniweb: {options.pages} pages on {web.base}, listed in {options.folder}/{TABLE}"
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
    parser.add_argument("folder", metavar="DIR", help=f"where {TABLE} is written")
    parser.add_argument("--pages", type=_whole, default=2400, help="rows of the table (default 2400)")
    parser.add_argument("--seed", type=int, default=17, help="another seed, another web (default 17)")
    parser.add_argument("--port", type=_port, default=18080, help="port on 127.0.0.1, 0 for a free one (default 18080)")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pages; expected 1 or more")
    return int(text)


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
