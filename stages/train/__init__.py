"""Pretraining on curated shards: the node of a DAG, and the commands `sluice train` and `sluice recipes`."""

from stages.train.train import Train

__all__ = ["Train"]
