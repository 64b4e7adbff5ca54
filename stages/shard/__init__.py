"""A selection made into training shards: the only step that copies bytes.

permutation.py  an exact shuffle without a sort
samples.py      the kept pairs of a part as samples: text and JSON, and where the image lies
blur.py         boxes of an image made unrecognisable
webdataset.py   the job
"""

from stages.shard.webdataset import WebDataset

__all__ = ["WebDataset"]
