"""Random numbers out of counters: the same for a place in the training on any device and any number of processes."""

import torch


def mixed(numbers: torch.Tensor) -> torch.Tensor:
    """int64 of int64: SplitMix64 (Steele et al. 2014) with each as its state; products wrap around on every device."""
    numbers = numbers * -7046029254386353131 + -7046029254386353131
    numbers = (numbers ^ _right(numbers, 30)) * -4658895280553007687
    numbers = (numbers ^ _right(numbers, 27)) * -7723592293110705685
    return numbers ^ _right(numbers, 31)


def _right(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)  # the sign does not come along
