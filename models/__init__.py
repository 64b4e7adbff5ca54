"""The trainable systems: plain PyTorch and transformers, without Ray, without the engine and without the stages.

`towers` turns images and texts into vectors; the trainer is to come.
"""
