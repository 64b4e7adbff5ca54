"""Downloading: URLs in; upright, re-encoded JPEGs in a tar and a row for every URL out, failures included.

statuses.py has the words that say how a row ended; addresses.py the URLs and addresses that may be reached, connect.py
DNS and TCP under those rules, connection.py one connection that serves again and again, answers.py what HTTP says,
proxy.py the way out where one is configured; optout.py, body.py and retries.py serve fetch.py, which turns one URL into
its bytes; decode.py is the confined program that meets hostile images, decoders.py holds a few of them; ordered.py runs
many rows at once and gives them back in order; archive.py is the tar; worker.py joins them for a part; download.py is
the stage.
"""

from stages.download.download import Download
from stages.download.img2dataset import Img2Dataset

__all__ = ["Download", "Img2Dataset"]
