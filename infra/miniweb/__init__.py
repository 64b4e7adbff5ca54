"""A small local web: pages that each embed one image under an alternative text, with known damage, served on loopback.

From a shell, until Ctrl-C, or while a command runs, whose exit status it takes:

    python -m infra.miniweb demo/web --pages 2400 --seed 17 --port 18080
    python -m infra.miniweb demo/web --pages 2400 -- sluice run quickstart demo/root
    python -m infra.miniweb.grade demo/key/key.parquet demo/root

`demo/web/urls.parquet` is then the table to curate and `demo/key/key.parquet` what was planted. In tests:

    with Miniweb(tmp_path, pages=200) as web: ...  # web.table, web.pages (what was planted), web.base, web.hits
    with Folder("../shared/data/coco_cc_by") as web: ...  # web.url("images/000000000285.jpg")
    with Scripted() as server: ...  # server.raw("/x", b"any bytes"), server.hits["/x"]
"""

from infra.miniweb.http import Answer, Raw, Request
from infra.miniweb.kinds import FACTS, Family, Kind
from infra.miniweb.mixes import MIXES
from infra.miniweb.plan import Page, Plan
from infra.miniweb.server import CannotListen, Handler, Scripted, Server, serve
from infra.miniweb.web import Folder, Miniweb

__all__ = [
    "FACTS",
    "MIXES",
    "Answer",
    "CannotListen",
    "Family",
    "Folder",
    "Handler",
    "Kind",
    "Miniweb",
    "Page",
    "Plan",
    "Raw",
    "Request",
    "Scripted",
    "Server",
    "serve",
]
