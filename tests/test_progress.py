"""Progress: bars for people, and a history of what was done."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading

from delt.progress import Bars, Meter


def test_bars_show_work_and_messages(capsys):
    bars = Bars()
    bars({"stage": "recover", "total": 100, "unit": "img-it", "set": "random"})
    bars({"stage": "recover", "done": 60})
    bars({"stage": "rank", "done": 7})  # of another stage: not counted
    bars({"message": "teacher: 98.5 %"})
    bars({"stage": "recover", "done": 40})  # no bar is open any more
    bars.close()
    captured = capsys.readouterr()
    assert captured.out == "teacher: 98.5 %\n"
    assert "random: recover" in captured.err and "60.0/100" in captured.err and "67" not in captured.err


def test_a_bar_that_is_full_says_so_at_once(capsys):
    bars = Bars()
    bars({"stage": "evaluate", "total": 3, "unit": "img"})
    for _ in range(3):
        bars({"stage": "evaluate", "done": 1})
    assert "100%" in capsys.readouterr().err, "though nobody closed it"


def test_a_bar_that_nobody_reads_ends_all_the_same(monkeypatch):
    """It moves in another thread, as where workers are: tqdm's lock would be kept by the thread that could not write."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", closefd=False)
    monkeypatch.setattr(sys, "stderr", stream)
    bars = Bars()
    bars({"stage": "recover", "total": 100})
    os.close(reader)
    moves = (lambda: bars({"stage": "recover", "done": 60}), lambda: bars._bar.refresh(), bars.close)
    threads = [threading.Thread(target=move, daemon=True) for move in moves]
    for thread in threads:
        thread.start()
        thread.join(20)
    os.close(writer)
    assert not any(thread.is_alive() for thread in threads)
    with contextlib.suppress(OSError):
        stream.close()


def test_nothing_to_do_opens_no_bar(capsys):
    bars = Bars()
    bars({"stage": "evaluate", "total": 0, "unit": "img"})
    bars.close()
    assert capsys.readouterr().err == ""


def test_meter_passes_on_and_keeps_a_history(tmp_path):
    heard = []
    meter = Meter(tmp_path / "run" / "metrics.jsonl", heard.append)
    meter({"stage": "recover", "total": 10})
    meter({"stage": "recover", "done": 4})
    meter({"stage": "recover", "done": 6})
    meter({"stage": "recover", "record": {"iteration": 3, "bn": 1.5}})
    meter({"stage": "evaluate", "total": 5})
    meter.flush()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"stage": "recover", "iteration": 3, "bn": 1.5}
    assert (lines[1]["stage"], lines[1]["work"]) == ("recover", 10) and lines[1]["per_second"] > 0
    assert len(lines) == 2 and len(heard) == 4  # the record is for the file alone
