"""A small dual encoder that scores pairs of the small local web, made by the trainer of this repo in half an hour.

It learns from scenes and captions of seeds of its own: `training` says how. What comes out is a folder like any other
model's, which `stages.embed` takes as `weights`. `python -m tests.benchmarks.stand_in` trains it and says where it is.
"""
