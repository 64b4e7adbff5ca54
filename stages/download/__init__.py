"""Downloading: URLs in; upright, re-encoded JPEGs in a tar and a row for every URL out, failures included.

statuses.py has the words that say how a row ended.

- Reaching hosts: addresses.py (which URLs and addresses may be reached), connect.py (DNS and TCP under those rules),
  connection.py (one connection that serves again and again), answers.py (what HTTP says), proxy.py.
- Treating them well: hosts.py (what all workers of a run share), leases.py (a worker's side of it), gate.py (which row
  may send now), robots.py and permission.py (robots.txt), optout.py (headers), lists.py (lists of ours), retries.py.
- fetch.py turns one URL into its bytes (body.py); ordered.py runs many rows at once and gives them back in order.
- decode.py is the confined program that meets hostile images, decoders.py holds a few of them, perceptual_hash.py says
  what a picture looks like; outcomes.py and archive.py write the part.
- worker.py joins all that for a part; download.py is the stage; img2dataset.py is the one that leaves the work to that
  library; reports.py says what a pool shows of the web.
"""

from stages.download.download import Download
from stages.download.img2dataset import Img2Dataset

__all__ = ["Download", "Img2Dataset"]
