"""What was typed is looked at before it is parsed: one line for a misspelt option or a number that is none."""

from __future__ import annotations

import pytest

from delt.cli import COMMANDS
from delt.config import flat_fields
from delt.errors import ConfigError
from delt.flags import SWITCHES, check_options


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run digits --teacher resnet18", "unknown option '--teacher' of `delt run`: did you mean --teacher-arch, --teacher-"),
        ("run digits --recovr-lr .1", "did you mean --recover-lr"),
        ("run digits --qqq 1", "unknown option '--qqq' of `delt run`: `delt run --help` explains all$"),
        ("run --dataset digits", "unknown option '--dataset' of `delt run`: leave out the word --dataset$"),
        ("run digits --ipc abc", "--ipc is 'abc'; allowed is a whole number$"),
        ("run digits --ipc=2.5", "--ipc is '2.5'; allowed is a whole number$"),
        ("run digits --ipc", "--ipc of `delt run` has no value: write it after it$"),
        ("run digits --ipc --seed 3", "--ipc of `delt run` has no value: write it after it$"),
        ("run digits foo", "`delt run` was given 'digits', 'foo'; allowed is one, dataset, and settings as --NAME VALUE$"),
        ("datasets foo", "`delt datasets` was given 'foo'; allowed is nothing of that kind$"),
        ("run digits -x", "unknown option '-x' of `delt run`: they begin with two dashes"),
        ("run digits --recover_lr x", "--recover-lr is 'x'; allowed is a number$"),
        ("run digits --precision fp8", "unknown value of --precision 'fp8': did you mean 'fp32'?"),
        ("run digits --evaluate-full maybe", "unknown value of --evaluate-full 'maybe': known are True, False$"),
        ("run digits --data-download=true", "unknown value of --data-download 'true': did you mean 'True'?"),
        ("sweep a.yaml --job 2", "unknown option '--job' of `delt sweep`: did you mean --jobs?"),
        ("compare digits --method delt", "did you mean --methods?"),
        ("show --long", "unknown option '--long' of `delt show`"),
    ],
)
def test_what_is_misspelt_is_said_in_a_line(command: str, says: str) -> None:
    name, *arguments = command.split()
    with pytest.raises(ConfigError, match=says) as found:
        check_options(name, COMMANDS[name], arguments)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "command",
    [
        "run digits --ipc 5 --recover-lr .1 --recover-lr=1e-3 --students convnet3 --recipe paper --on-bad-image skip --allow-drift",
        "run digits --data-download False --evaluate-controls ''",
        "run --out runs/a --help",
        "evaluate --images a --dataset digits --evaluate_seeds 3",
        "bench --smoke --no-smoke --sizes 32",
        "plan digits --machine cuda",
        "compare digits --methods delt,cda --ipc 3,10",
        "show runs/a runs/b",
        "verify runs/a",
        "datasets",
        "run --tyro-print-completion bash",
    ],
)
def test_what_is_spelt_right_passes(command: str) -> None:
    name, *arguments = command.split()
    check_options(name, COMMANDS[name], arguments)


def test_every_field_passes_with_its_default() -> None:
    for entry in flat_fields():
        if entry.name not in ("dataset", *SWITCHES) and entry.default is not None:
            value = ",".join(entry.default) if isinstance(entry.default, tuple) else str(entry.default)
            check_options("run", COMMANDS["run"], [f"--{entry.name.replace('_', '-')}", value])
