"""Points as Slurm jobs, through submitit; all of them at once as an array, of which `jobs` run at a time.

A job that Slurm takes its node from (preemption, the end of its time, a lost node) is requeued or submitted again, and the
run goes on from its checkpoints. Slurm's own files and what the jobs print lie in OUT/logs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
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
PATIENCE = 60.0  # seconds between two questions to Slurm, and that a shared disk may take to show a result


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
    """A point in a Slurm job."""

    def __init__(self, job: submitit.Job[Outcome]) -> None:
        self.job, self._begun, self._ended = job, time.monotonic(), 0.0

    def running(self) -> bool:
        """Whether Slurm says that it runs; for long jobs the word may be minutes old."""
        return str(self.job.state) == "RUNNING"

    def outcome(self) -> Outcome | None:
        """How it ended, or None."""
        if not self.job.done():
            return None
        if not self.job.paths.result_pickle.exists():
            return self._without_result()
        error = self.job.exception()
        found = self._failed(str(error).strip().splitlines()[-1]) if error else self.job.result()
        if found.state == "stopped" and str(self.job.state).startswith("CANCELLED"):
            return self._failed("was cancelled with scancel")
        return found

    def _without_result(self) -> Outcome | None:
        now, local = time.monotonic(), isinstance(self.job, submitit.LocalJob)
        self._ended = self._ended or now
        if not local and now - self._ended < PATIENCE:
            return None
        state = "" if local else f" (Slurm says {self.job.state})"
        return self._failed(f"ended without a result{state}: it was killed, ran out of memory, or lost its node")

    def _failed(self, what: str) -> Outcome:
        words = f"job {self.job.job_id} {what}; {self.job.paths.stderr} may say more; the same command goes on where it was"
        return Outcome("failed", time.monotonic() - self._begun, words)


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
        tasks = [SlurmTask(job) for job in jobs]
        self.tasks += tasks
        return tasks

    def stop(self) -> None:
        """Cancel all jobs that this engine submitted; those that run have some seconds for their step and a checkpoint."""
        until = time.monotonic() + GRACE
        left = [task.job for task in self.tasks if not task.job.done()]
        if left and not self.local:
            _cancel(left)
        while left and time.monotonic() < until:
            for job in left if self.local else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)  # which it passes on; again, since one that is starting may miss it
            time.sleep(0.5)
            left = [job for job in left if not job.done(force_check=True)]


def _parameters(asked: SlurmSettings, jobs: int, name: str) -> dict[str, Any]:
    """The settings in submitit's words."""
    options = {"requeue": True, **asked.options}
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


def _cancel(jobs: Sequence[submitit.Job[Any]]) -> None:
    for job in jobs:
        job.cancel(check=False)
