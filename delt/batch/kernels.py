"""Kernels that notebooks run in, behind papermill: each has its own environment, and nothing of it outlives its notebook.

papermill's own engine gives every kernel the same environment. Here a kernel can be told which GPU it sees, all running
kernels can be ended from another thread, and a notebook whose kernel died says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import nbformat
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

NAME = "delt"
QUIET = Config({"KernelManager": {"transport_encryption": "auto"}})  # a kernel warns of every plain connection


class Kernels:
    """The process groups of running kernels: a kernel leads one, and its worker processes belong to it."""

    def __init__(self) -> None:
        self.stopped = False
        self._groups: set[int] = set()
        self._lock = threading.Lock()

    def begin(self, group: int) -> None:
        """Count a kernel as running; one that comes after `stop` is ended at once."""
        with self._lock:
            self._groups.add(group)
        if self.stopped:
            self.end(group)

    def end(self, group: int) -> None:
        """End what is left of a kernel's processes: workers would outlive one that was killed."""
        with self._lock:
            if group in self._groups:
                self._groups.remove(group)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)

    def ask(self) -> None:
        """Ask all kernels to end, once: a run finishes its step and writes a checkpoint, anything else ends at once."""
        if self.stopped:  # a run that is asked again ends without its checkpoint
            return
        self.stopped = True
        for leader in list(self._groups):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(leader, signal.SIGTERM)

    def stop(self, grace: float = 10.0) -> None:
        """End all kernels, and every one that is still to begin. What they were doing goes on from its checkpoints.

        Args:
            grace: seconds that they have to come to the end of a step.
        """
        self.ask()
        until = time.monotonic() + grace
        while self._groups and time.monotonic() < until:
            time.sleep(0.05)
        for group in list(self._groups):
            self.end(group)


class Client(PapermillNotebookClient):
    """papermill's client; it also counts its kernel's process group and marks the cell in which the kernel died."""

    kernels: Kernels

    @contextlib.contextmanager
    def setup_kernel(self, **more: Any) -> Iterator[None]:
        """Start the kernel, and end it at once after the block: one that is asked to end complains on the screen at times."""
        with super().setup_kernel(**more):
            group = getattr(self.km.provisioner, "pgid", None)  # None where there are no process groups (Windows)
            if group is not None:
                self.kernels.begin(group)
            try:
                yield
            finally:
                if group is not None:
                    self.kernels.end(group)

    def execute_cell(self, cell: Any, cell_index: int, **more: Any) -> Any:
        """Execute a cell."""
        try:
            return super().execute_cell(cell, cell_index, **more)
        except DeadKernelError:
            cell.outputs.append(nbformat.v4.new_output("error", ename="DeadKernelError", evalue="the kernel died", traceback=[]))
            self.nb_man.cell_exception(cell, cell_index)
            raise


class KernelEngine(NBClientEngine):
    """papermill's engine with an environment per kernel (`env`) and a list of all kernels (`kernels`)."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        folder: str,
        env: Mapping[str, str],
        kernels: Kernels,
        start_timeout: int = 60,
        **unused: Any,
    ) -> Any:
        """Execute a notebook in a kernel whose working folder is `folder`, without leaving this process's own."""
        resources = {"metadata": {"path": folder}}
        client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None, resources=resources, config=QUIET)
        client.kernels = kernels
        try:
            return client.execute(env={**os.environ, **env})
        finally:
            if threading.current_thread() is not threading.main_thread() and not (loop := ensure_event_loop()).is_running():
                loop.close()  # a thread's own loop, which would stay open when the thread is gone


papermill_engines.register(NAME, KernelEngine)
