"""A small local web: pages that each embed one image under an alternative text, with known damage, served on loopback.

From a shell, until Ctrl-C, or while a command runs, whose exit status it takes:

    python -m infra.miniweb demo/web --pages 2400 --seed 17 --port 18080
    python -m infra.miniweb demo/web --pages 2400 -- sluice run quickstart demo/root

`demo/web/urls.parquet` is then the table to curate. In tests:

    with Miniweb(tmp_path, pages=200) as web: ...  # web.table, web.pages (what was planted), web.base
    with Folder("../shared/data/coco_cc_by") as web: ...  # web.url("images/000000000285.jpg")
"""

from infra.miniweb.plan import SHARES, Damage, Page, plan
from infra.miniweb.server import Answer, CannotListen, Handler, serve
from infra.miniweb.web import Folder, Miniweb

__all__ = ["SHARES", "Answer", "CannotListen", "Damage", "Folder", "Handler", "Miniweb", "Page", "plan", "serve"]
