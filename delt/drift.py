"""Drift: a run that goes on with another machine, thread count or version does not end with the bits of an undisturbed one.

So the machine that a run was begun on is written down beside its work, and its settings are taken over where a command
leaves them open. Where they cannot be, or others are asked for, the run refuses to go on, unless `allow_drift` says that
it should: the manifest then keeps a note of what changed and when.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from delt import storage
from delt.artifacts.folder import RunFolder
from delt.config import RuntimeConfig
from delt.errors import ConfigError, IntegrityError, RunError
from delt.runtime import device_of, machine

SETTINGS = ("device", "threads", "precision", "train_precision", "memory_format", "packing", "compile", "graphs")
FACTS = ("torch", "device_name", "cpu_capability")
FILE = "machine.json"  # in .work, while a run is not finished; then in the manifest
WAYS = "go on there, choose another --out, or go on all the same with --allow-drift, of which the manifest keeps a note"


def settings_of(runtime: RuntimeConfig) -> dict[str, Any]:
    """What of a machine's use changes bits."""
    return {name: getattr(runtime, name) for name in SETTINGS}


def facts_of(runtime: RuntimeConfig) -> dict[str, Any]:
    """What of the machine itself changes bits."""
    found = machine(runtime)
    return {name: found[name] for name in FACTS}


def remembered(runtime: RuntimeConfig, folder: RunFolder) -> RuntimeConfig:
    """The same, with what is left open taken over from the machine that the run in the folder was begun on.

    Raises:
        RunError: its device is not here, and drift is not allowed.
    """
    was = _recorded(folder).get("settings", {})
    if not was:
        return runtime
    device = was["device"] if runtime.device == "auto" else runtime.device
    if _kind(device) != _kind(str(was["device"])):
        return runtime
    try:
        device_of(replace(runtime, device=device))
    except ConfigError as error:
        if runtime.allow_drift or runtime.device != "auto":
            return runtime
        raise RunError(f"{folder.path} was begun on {was['device']}, which is not here ({error}): {WAYS}") from None
    taken = {name: was[name] for name in SETTINGS if name != "device" and getattr(runtime, name) in (None, "auto")}
    return replace(runtime, device=device, **taken)


@dataclass
class Drift:
    """Looks once, before the first work that adds to a folder, whether it is done as what stands there was."""

    folder: RunFolder
    allowed: bool = False
    notes: list[dict[str, Any]] = field(default_factory=list)  # for the manifest
    settled: bool = False

    def settle(self, runtime: RuntimeConfig) -> None:
        """Compare the machine with the recorded one, and record it.

        Raises:
            RunError: they differ and drift is not allowed; names each difference.
        """
        if self.settled:
            return
        recorded = _recorded(self.folder)
        now = {"settings": settings_of(runtime), "facts": facts_of(runtime)}
        self.notes = list(recorded.get("drift", []))
        was = {**recorded.get("settings", {}), **recorded.get("facts", {})}
        changed = {name: [was[name], value] for name, value in {**now["settings"], **now["facts"]}.items() if _differ(name, was, value)}
        if changed and not self.allowed:
            words = "; ".join(f"{name}: was {before}, now {after}" for name, (before, after) in changed.items())
            raise RunError(f"{self.folder.path} was begun otherwise ({words}), and going on would not give the same bits: {WAYS}")
        if changed:
            self.notes.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "changed": changed})
        if changed or not was:
            storage.write_sealed(self.folder.path / ".work" / FILE, {**now, "drift": self.notes})
        self.settled = True

    def record(self) -> dict[str, Any]:
        """The entries of the manifest: the newest settings, and what changed on the way, where something did."""
        recorded = _recorded(self.folder)
        notes = {"drift": recorded["drift"]} if recorded.get("drift") else {}
        return {"settings": recorded.get("settings", {}), **notes}


def _recorded(folder: RunFolder) -> dict[str, Any]:
    """What is known of the machine that a run was begun on, or went on with; empty where nothing is."""
    path = folder.path / ".work" / FILE
    if path.exists():
        try:
            return storage.read_sealed(path)
        except IntegrityError as error:
            warnings.warn(f"it is not known any more on what machine this run was begun: {error}", stacklevel=3)
            return {}
    manifest = folder.manifest() or {}
    facts = manifest.get("machine", {})
    known = {"settings": manifest.get("settings", {}), "facts": {name: facts[name] for name in FACTS if name in facts}}
    return {**known, "drift": manifest.get("drift", [])} if known["settings"] else {}


def _kind(device: str) -> str:
    """cpu or cuda: which one of several equal GPUs it is makes no difference."""
    return device.split(":")[0]


def _differ(name: str, was: Mapping[str, Any], now: Any) -> bool:
    if name not in was:
        return False
    return _kind(str(was[name])) != _kind(str(now)) if name == "device" else bool(was[name] != now)
