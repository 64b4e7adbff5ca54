"""A talk with a trained model about images, in the terminal: `sluice chat MODEL --image FILE`.

talk.py       a model, what was said so far, and its answers piece by piece
__main__.py   the command
"""
