"""Where rows come from: tables of URLs, or a folder that img2dataset wrote; and plain texts, which become shards.

identity.py            uid and caption_id
texts.py               captions cleaned, URLs judged
formats.py             Parquet, CSV, TSV and JSON Lines as batches of rows
columns.py             which input column becomes which output column
increments.py          which files are known already, which are new
rows.py                one file to rows that say how they end
merge.py               repeats of a URL brought together
url_tables.py          the stage over them
tars.py                a tar's members, none of them extracted
img2dataset_folder.py  the same for a folder that img2dataset wrote
text_files.py          texts for language models
"""

from stages.ingest.img2dataset_folder import Img2DatasetFolder
from stages.ingest.text_files import TextFiles
from stages.ingest.url_tables import UrlTables

__all__ = ["Img2DatasetFolder", "TextFiles", "UrlTables"]
