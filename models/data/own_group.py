"""Imported by the server that decoders are forked from, and by nobody else: what stops the trainer does not stop them.

A Ctrl-C in a terminal, and what torchrun and `timeout` do to stop a training, is sent to a whole group; Slurm's SIGTERM
to every process, the server among them, whose end would be taken for theirs. It is for the trainer, which ends its
decoders itself when it has kept its state.
"""

import os
import signal

os.setpgid(0, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
