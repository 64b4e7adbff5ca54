"""Conversations about curated images: written, judged, packed; read from other people's files, and given to them.

conversations.py  the job, and what all that write conversations share
phrases.py, known.py   what a caption says, and what all of an image do
boxed.py, templates.py what boxes show, and what is asked of them and of captions without any model
written.py, prompts/   the same by a language model, in a folder or behind a server
turns.py          one question and its answer; LLaVA's and ShareGPT's forms
filters.py        why a turn is not kept
packing.py        conversations and images as a tar
files.py, json_slices.py, command.py   from other people's JSON, and back to it
"""

from stages.conversations.conversations import Conversations
from stages.conversations.files import ConversationFiles
from stages.conversations.written import ConversationsByModel, ConversationsByServer

__all__ = ["ConversationFiles", "Conversations", "ConversationsByModel", "ConversationsByServer"]
