"""Imported by the server that decoders are forked from, and by nobody else: they are no part of the trainer's group.

A Ctrl-C in a terminal, and what torchrun and `timeout` do to stop a training, is sent to a whole group. It is for the
trainer, which ends its decoders itself when it has kept its state.
"""

import os

os.setpgid(0, 0)
