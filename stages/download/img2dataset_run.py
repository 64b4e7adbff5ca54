"""The process in which img2dataset downloads one part: `python -m stages.download.img2dataset_run <folder>`.

The folder has `request.json` (settings) and `urls.arrow` (one shard of URLs, as img2dataset cuts them itself); it gets
`00000.tar`, `00000.parquet` and `00000_stats.json`. The process ends with its standard input, so that no killed worker
leaves one behind. Every name is resolved, and every address dialled, under the guard that `Download` has.
"""

import json
import os
import resource
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from stages.download.addresses import PORTS, Guard
from stages.download.statuses import FetchError


def main(folder: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads((folder / "request.json").read_text())
    limit = request["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard_sockets(Guard(tuple(request["allow"])), request["refused"])
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask PyPI for its newest version
    warnings.simplefilter("ignore")
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    download = Downloader(
        WebDatasetSampleWriter,
        Resizer(**request["resizer"]),
        save_caption=False,
        output_folder=str(folder),
        column_list=["url"],
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        **request["downloader"],
    )
    download.download_shard((0, str(folder / "urls.arrow")))


def guard_sockets(guard: Guard, refused: str) -> None:
    """From now on, `socket.getaddrinfo` gives only addresses that the guard lets through, in this process.

    `refused` begins our messages among img2dataset's; the status follows.
    """
    resolve = socket.getaddrinfo

    def guarded(host: Any, port: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if port not in PORTS and not guard.allows(name, port):
            raise OSError(f"{refused}blocked_port: port {port} of {name} is neither 80 nor 443")
        found = resolve(host, port, *arguments, **named)
        try:
            guard.check_addresses(name, port, [str(address[4][0]) for address in found])
        except FetchError as refusal:
            raise OSError(f"{refused}{refusal}") from None
        return found

    socket.getaddrinfo = guarded


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
