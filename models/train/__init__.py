"""The one loop that trains every system: `python -m models.train --help`, or `models.train.loop.train`."""
