"""Searching a pool by what its images look like: an index of embeddings as files, and the command that asks it."""

from stages.index.embedding_index import EmbeddingIndex

__all__ = ["EmbeddingIndex"]
