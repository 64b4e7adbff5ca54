"""The trainable systems: plain PyTorch and transformers, without Ray, without the engine and without the stages.

Empty until the trainer lands; the import contracts of `make check` hold for it already.
"""
