"""Points as Slurm jobs, through submitit; all of them at once as an array, of which `jobs` run at a time.

A job that Slurm takes its node from (preemption, the end of its time, a lost node) is requeued or submitted again, and the
run goes on from its checkpoints. Slurm's own files and what the jobs print lie in OUT/logs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import submitit

from delt.batch.engines import Task
from delt.batch.engines.settings import SlurmSettings
from delt.batch.kernels import Kernels
from delt.batch.work import Outcome, Work, run_point
from delt.errors import DeltError
from delt.signals import unheard

NOTICE = 90  # seconds before the end of a job's time at which it is told
GRACE = 60.0  # seconds of them that a run has for its step and its checkpoint
REQUEUES = 100  # ends of time that one job may live to see
PATIENCE = 60.0  # seconds between two questions to Slurm, and until a job without a node and without a result is given up


class Job:
    """What a Slurm job does. Its main thread listens for Slurm's signals while another one does the work."""

    def __init__(self, work: Work, cpus: int) -> None:
        self.work, self.cpus = work, cpus
        self.kernels: Kernels | None = None  # cannot travel

    def __call__(self) -> Outcome:
        """Do the point; where SIGTERM comes, as before a preemption or with scancel, end with a checkpoint as `stopped`."""
        kernels = self.kernels = Kernels()
        signal.signal(signal.SIGTERM, lambda *_: kernels.ask())
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(run_point, self.work.config, self.work.folder, None, kernels, self.cpus)
            while not future.done():
                time.sleep(0.1)
                if kernels.stopped:
                    kernels.stop(GRACE)
            return future.result()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit where the job's time is over: end with a checkpoint, and say what is to go on in the queue."""
        if self.kernels:
            self.kernels.stop(GRACE)
        return submitit.helpers.DelayedSubmission(Job(self.work, self.cpus))


class SlurmTask:
    """A point in a Slurm job; `look` asks Slurm how all jobs are, if that was long ago."""

    def __init__(self, job: submitit.Job[Outcome], look: Callable[[], None]) -> None:
        self.job, self._look = job, look
        self.found: Outcome | None = None
        self._begun, self._gone = time.monotonic(), 0.0  # when the job was first seen without a node and without a result

    def running(self) -> bool:
        """Whether Slurm says that it runs; for long jobs the word may be a minute old."""
        return str(self.job.state) == "RUNNING"

    def outcome(self) -> Outcome | None:
        """How it ended, or None."""
        self.found = self.found or self._find()
        return self.found

    def _find(self) -> Outcome | None:
        self._look()
        if self.job.done():
            return self._result() if self.job.paths.result_pickle.exists() else self._lost()
        if not str(self.job.state).startswith("PREEMPTED"):
            self._gone = 0.0
        elif self._gone_for(PATIENCE):  # and Slurm does not requeue it
            self.job.cancel(check=False)  # nor later, when it runs again elsewhere
            return Outcome("stopped", self._seconds())
        return None

    def _result(self) -> Outcome:
        if error := self.job.exception():
            trace = str(error).split("-" * 22)[1].strip()  # between two lines of submitit's own
            return self._failed(f"failed before its run began: {trace.splitlines()[-1]}")
        found = self.job.result()
        if found.state == "stopped" and self.job.get_info().get("State", "").startswith("CANCELLED"):
            return self._failed("was cancelled with scancel")
        return found

    def _lost(self) -> Outcome | None:
        local = isinstance(self.job, submitit.LocalJob)
        if not local and not self._gone_for(PATIENCE):  # as long as a shared disk may take to show a result
            return None
        state = "" if local else f" (Slurm says {self.job.state})"
        return self._failed(f"ended without a result{state}: it was killed, ran out of memory, or lost its node")

    def _failed(self, what: str) -> Outcome:
        words = f"job {self.job.job_id} {what}; {self.job.paths.stderr} may say more; the same command goes on where it was"
        return Outcome("failed", self._seconds(), words)

    def _gone_for(self, seconds: float) -> bool:
        self._gone = self._gone or time.monotonic()
        return time.monotonic() - self._gone >= seconds

    def _seconds(self) -> float:
        return time.monotonic() - self._begun


class SlurmEngine:
    """A job per point.

    Args:
        asked: what each point asks for.
        jobs: points at a time.
        logs: folder for submitit's files and for what the jobs print.
        name: of the jobs.

    Raises:
        DeltError: there is no Slurm here.
    """

    def __init__(self, asked: SlurmSettings, jobs: int, logs: Path, name: str) -> None:
        self.local, self._asked = asked.cluster == "local", asked
        self.room = jobs if self.local else 10**6  # Slurm keeps the others in its queue
        self.pause = 0.2 if self.local else 2.0
        self.tasks: list[SlurmTask] = []
        self._looked = time.monotonic()
        folder = logs / time.strftime("%Y%m%d-%H%M%S")  # numbers of jobs come again on one machine
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=asked.cluster, slurm_max_num_timeout=REQUEUES)
        except RuntimeError as error:
            words = "run it where srun and sbatch are, or try the file without Slurm with `slurm: {cluster: local}` in it"
            raise DeltError(f"no Slurm here ({error}): {words}") from None
        self._executor.update_parameters(**_parameters(asked, jobs, name))

    def submit(self, works: Sequence[Work]) -> Sequence[Task]:
        """Take points, several of them as one array.

        Raises:
            DeltError: Slurm refused.
        """
        try:
            with unheard():  # Ctrl-C is for this process alone, which tells its jobs
                jobs = self._executor.submit_array([Job(work, self._asked.cpus) for work in works])
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise DeltError(f"Slurm took no jobs: {' '.join(str(error).split())}") from error
        tasks = [SlurmTask(job, self._look) for job in jobs]
        self.tasks += tasks
        return tasks

    def stop(self) -> None:
        """Cancel all jobs that this engine submitted; those that run have some seconds for their step and a checkpoint."""
        until, left = time.monotonic() + GRACE, self._left()
        if left and not self.local:
            subprocess.call(["scancel", *(job.job_id for job in left)])
        while left and time.monotonic() < until:
            for job in left if self.local else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)  # which it passes on; again, since one that is starting may miss it
            time.sleep(self.pause)
            self._look(every=self.pause)
            left = self._left()

    def _left(self) -> list[submitit.Job[Outcome]]:
        return [task.job for task in self.tasks if not (task.found or task.job.done())]

    def _look(self, every: float = PATIENCE) -> None:
        """Ask Slurm how all jobs are; submitit's own questions come ever more rarely."""
        if not self.local and time.monotonic() - self._looked >= every:
            submitit.SlurmJob.watcher.update()
            self._looked = time.monotonic()


def _parameters(asked: SlurmSettings, jobs: int, name: str) -> dict[str, Any]:
    """The settings in submitit's words."""
    options = {name: value for name, value in {"requeue": True, **asked.options}.items() if value is not False}
    texts = {"slurm_partition": asked.partition, "slurm_account": asked.account, "slurm_qos": asked.qos}
    return {
        "name": name,
        "timeout_min": asked.time,
        "cpus_per_task": asked.cpus,
        "gpus_per_node": asked.gpus or None,
        "mem_gb": asked.memory or None,
        "slurm_array_parallelism": jobs,
        "slurm_signal_delay_s": NOTICE,
        "slurm_additional_parameters": options,
        **{key: value or None for key, value in texts.items()},
    }
