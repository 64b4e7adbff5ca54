"""A run as one HTML file: what was dropped and why, what the numbers look like, and pictures of both.

    page = report("runs/demo")

`sluice report runs/demo --out page.html` writes it.
"""

from pipeline.report.page import report

__all__ = ["report"]
