"""Images that must go: their bytes and words leave every file of a root, and no later run fetches them again.

- `tombstones.py`: what was asked to go, as the store keeps it: digests and domains, never the content.
- `matching.py`: which rows that means. `tables.py`, `tars.py`: files without them. `records.py`: records without them.
- `seen.py`: which selections, shards, checkpoints and indexes had them. `erasure.py`: all of it, resumable.

In a table the row stays, with `uid` and the status `taken_down`; all else that it said is null: caption, EXIF, digests,
embeddings, scores. Its URL is cut to the host. Where the row stood in the input (`source_file`, `source_row`) stays, so
that it can be taken out there as well. An index, or whatever else has their rows beside a file from which nothing can
be cut, is deleted, and the next run makes it anew. `content_hash` says what the work gave, and stays: nothing is
computed again because of a takedown but for those.
"""
