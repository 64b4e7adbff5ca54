"""Balancing: no concept and no cluster may fill the training set with itself."""

from stages.balance.clusters import BalanceClusters
from stages.balance.concepts import BalanceConcepts

__all__ = ["BalanceClusters", "BalanceConcepts"]
