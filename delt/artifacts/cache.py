"""What several runs share: trained teachers and full-data accuracies, kept once per user under a key of their causes."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from delt import storage
from delt.artifacts.scores import Score
from delt.artifacts.teacher import Teacher
from delt.errors import DeltError, IntegrityError


def cache_folder() -> Path:
    """The user's cache: $DELT_CACHE, or `delt` in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("DELT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delt"


def key_of(**causes: Any) -> str:
    """A short name for everything that a cached result depends on (JSON values)."""
    return storage.sha256_bytes(storage.json_bytes(causes))[:24]


def load_teacher(key: str) -> Teacher | None:
    """The cached teacher of this key; a damaged one counts as missing."""
    folder = cache_folder() / "teachers" / key
    if not (folder / "teacher.safetensors").exists():
        return None
    try:
        return Teacher.load(folder / "teacher.safetensors")
    except DeltError:
        return None


def keep_teacher(key: str, teacher: Teacher) -> None:
    """Put a teacher into the cache."""
    teacher.save(cache_folder() / "teachers" / key)


def load_score(key: str) -> Score | None:
    """The cached score of this key; a damaged one counts as missing."""
    path = cache_folder() / "scores" / f"{key}.json"
    try:
        return Score(**storage.read_sealed(path))
    except (IntegrityError, TypeError):
        return None


def keep_score(key: str, score: Score) -> None:
    """Put a score into the cache."""
    storage.write_sealed(cache_folder() / "scores" / f"{key}.json", asdict(score))
