"""Runs as processes: failures are told, Ctrl-C stops them, the rest goes on."""

import importlib.util
import os
import time

import pytest

from experiments import launch
from moejax.core.plugin import Wrong


def job(tmp_path, lr):
  return launch.Job(f"lr {lr}", (f"--config.train.lr_peak={lr}",), tmp_path / str(lr), 2)


def test_a_failed_run_says_why_and_does_not_stop_the_others(stand_in, tmp_path):
  jobs = [job(tmp_path, lr) for lr in (0.5, 0.1, 0.2)]
  ended = dict(event for event in launch.local(jobs, workers=2) if event)
  assert ended[jobs[0]] == "the loss is not finite; lower train.lr_peak. (exit code 1)"
  assert ended[jobs[1]] is ended[jobs[2]] is None
  assert [j.finished() for j in jobs] == [False, True, True]
  assert jobs[1].steps_done() == 2


def test_a_worker_stays_with_what_it_has_compiled(tmp_path):
  jobs = [launch.Job(f"{arm}{i}", (), tmp_path / f"{arm}{i}", 2, arm) for arm in "ab" for i in "01"]
  label = lambda *known: launch.least_to_compile(jobs, *known).label
  assert label(set(), set()) == "a0"  # the first one
  assert label(set(), {"a"}) == "b0"  # another worker has a
  assert label({"b"}, {"a"}) == "b0"
  assert label({"c"}, {"a", "b"}) == "a0"  # no program of its own is left


def test_closing_stops_what_runs(stand_in, tmp_path):
  endless, later = job(tmp_path, 0.25), job(tmp_path, 0.1)
  events = launch.local([endless, later], workers=1)
  while not (endless.workdir / "started").exists():
    assert next(events) is None
  begin = time.monotonic()
  events.close()
  assert time.monotonic() - begin < 10
  with pytest.raises(ProcessLookupError):
    os.kill(int((endless.workdir / "started").read_text()), 0)
  assert not later.workdir.exists() and not endless.finished()
  assert launch.error_of(endless, -15) == "no output (exit code -15)"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores can be dealt out on Linux")
def test_every_core_goes_to_one_worker():
  mine = os.sched_getaffinity(0)
  if len(mine) < 2:
    pytest.skip("one core cannot be dealt out")
  dealt = launch._cores(2)
  assert dealt[0] | dealt[1] == mine and not dealt[0] & dealt[1]
  with launch._pinned(dealt[0]):
    assert os.sched_getaffinity(0) == dealt[0]
  assert os.sched_getaffinity(0) == mine


def test_wrong_launchers_are_named(monkeypatch):
  with pytest.raises(Wrong, match="Did you mean 'local'"):
    launch.launcher("locl")
  with pytest.raises(Wrong, match="give --workers=1"):
    next(launch.local([], workers=0))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(Wrong, match=r"run pip install 'moejax\[sweep\]'"):
    next(launch.ray([], workers=1))
