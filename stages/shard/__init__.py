"""A selection made into training shards: the only step that copies bytes.

permutation.py  an exact shuffle without a sort
samples.py      the kept pairs of a part as samples: text and JSON, and where the image lies
archive.py      a tar with the same bytes always
webdataset.py   the job
"""

from stages.shard.webdataset import WebDataset

__all__ = ["WebDataset"]
