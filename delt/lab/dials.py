"""The four numbers of EarlyLate as dials that stay consistent: turning one moves another only where it must, and says why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from delt.config import RunConfig
from delt.schedule import Schedule, plan

SHORT = {"iterations": "MI", "round_iterations": "RI", "sub_batches": "M", "ipc": "IPC"}


@dataclass(frozen=True)
class Dials:
    """MI, RI, M and IPC of a schedule that exists: M is at most IPC, and the last sub-batch joins before the end.

    >>> Dials(4000, 500, 8, 50).turned("iterations", 2000)[1]
    'RI lowered from 500 to 250, so that the last of 8 sub-batches joins before the end at 2,000'
    """

    iterations: int
    round_iterations: int
    sub_batches: int
    ipc: int

    @staticmethod
    def of(config: RunConfig) -> Dials:
        """The dials of a run's configuration, whose schedule follows from what it does not say."""
        schedule = config.recover.schedule(config.ipc)
        return Dials(schedule.iterations, schedule.round_iterations, schedule.sub_batches, schedule.ipc)

    @property
    def schedule(self) -> Schedule:
        """The plan of one class."""
        return plan(self.iterations, self.ipc, self.round_iterations, self.sub_batches)

    @property
    def title(self) -> str:
        """All four in words."""
        return ", ".join(f"{short} {getattr(self, name):,}" for name, short in SHORT.items())

    @property
    def slug(self) -> str:
        """All four in a folder's name."""
        return "-".join(f"{short.lower()}{getattr(self, name)}" for name, short in SHORT.items())

    def turned(self, name: str, value: int) -> tuple[Dials, str]:
        """The dials after one was set to `value`, and what else had to move, in words ("" where nothing had)."""
        dials = replace(self, **{name: max(1, value)})
        notes = []
        if dials.sub_batches > dials.ipc:
            notes.append(f"M lowered from {dials.sub_batches} to {dials.ipc}, since every sub-batch needs an image of each class")
            dials = replace(dials, sub_batches=dials.ipc)
        if (dials.sub_batches - 1) * dials.round_iterations >= dials.iterations:
            dials, note = dials._shortened() if name != "round_iterations" else dials._thinned()
            notes.append(note)
        return dials, "; ".join(notes)

    def _shortened(self) -> tuple[Dials, str]:
        """Rounds as long as M and MI allow."""
        if self.iterations < self.sub_batches:
            return replace(self, sub_batches=self.iterations, round_iterations=1)._because(self)
        return replace(self, round_iterations=self.iterations // self.sub_batches)._because(self)

    def _thinned(self) -> tuple[Dials, str]:
        """As many sub-batches as RI and MI allow."""
        return replace(self, sub_batches=-(-self.iterations // self.round_iterations))._because(self)

    def _because(self, before: Dials) -> tuple[Dials, str]:
        moved = [
            f"{SHORT[name]} lowered from {old:,} to {new:,}"
            for name in ("round_iterations", "sub_batches")
            if (old := getattr(before, name)) != (new := getattr(self, name))
        ]
        last = f"the last of {self.sub_batches} sub-batches" if self.sub_batches > 1 else "every sub-batch"
        return self, f"{' and '.join(moved)}, so that {last} joins before the end at {self.iterations:,}"
