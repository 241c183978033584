"""Where new processes of this machine come from: copies of one clean process that has torch loaded.

A copy is up in hundredths of a second and shares the memory of what is loaded; a process that begins from nothing takes seconds
and half a gigabyte. This process itself is never copied: it may have threads, and a GPU.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

from delt.signals import unheard

# torch's optimisers load its compiler, which takes longer than torch. What the server does not find, each copy looks for itself.
LOADED = ["torch", "torch._dynamo", "delt.pool", "delt.data.stream"]


def context() -> BaseContext:
    """What makes processes here; they end with this one. Elsewhere than on Linux they begin from nothing: copies are not safe there."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(LOADED)
    with unheard():  # a closed terminal would end it, which is deaf to Ctrl-C and SIGTERM by itself
        resource_tracker.ensure_running()  # before the next block, within which it would open this process's ears again
    with unheard(signal.SIGTERM):  # a signal to all processes of a job would take the server, and with it what watches over the copies
        forkserver.ensure_running()
    return made


def hear() -> None:
    """In a new process: listen to SIGTERM again, to which the server is deaf."""
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
