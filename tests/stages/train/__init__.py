"""Tests of trainings as nodes, and of the commands beside them."""
