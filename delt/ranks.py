"""Which of the processes that torchrun started this one is, from the environment alone: plain values, no torch."""

from __future__ import annotations

import os
import socket

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def ranks() -> int:
    """How many processes torchrun started; 1 where it did not."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in ENVIRONMENT) else 1


def rank() -> int:
    """The number of this process among them; the first one, 0, leads."""
    return int(os.environ["RANK"]) if ranks() > 1 else 0


def local() -> tuple[int, int]:
    """The number of this process among those of its machine, and how many these are."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def prefix() -> str:
    """What stands before a message: nothing, or which rank of which machine has it to say."""
    return f"rank {rank()} on {socket.gethostname()}: " if ranks() > 1 else ""
