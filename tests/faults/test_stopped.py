"""Signals, damaged checkpoints, other devices and bad numbers, in runs of one process."""

import json
import os
import pathlib
import re
import shutil
import signal

import jax
import pytest
from close import assert_close
from driver import sums

from moejax.core import config
from moejax.core.plugin import Failed, Wrong
from moejax.train import checkpoint, loop, rundir

pytestmark = pytest.mark.usefixtures("quick")


def fit(section, workdir):
  """(config, result) of a run in this process, on one device unless the section says otherwise."""
  cfg = config.resolve({"mesh": "data:1", **section})
  return cfg, loop.fit(cfg, workdir, terminal=False)


def steps_of(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def log_of(workdir):
  return (workdir / "log.txt").read_text()


def interrupt(patch, step, name):
  """A signal to this process right after a step."""
  log = rundir.RunDir.log

  def spied(self, kind, **fields):
    log(self, kind, **fields)
    if (kind, fields["step"]) == ("train", step):
      os.kill(os.getpid(), name)

  patch.setattr(rundir.RunDir, "log", spied)


@pytest.fixture(scope="module")
def whole(section, tmp_path_factory):
  """(state, sums of the state) of an uninterrupted run."""
  cfg, result = fit(section(), tmp_path_factory.mktemp("whole"))
  return result.state, sums(cfg, result)


@pytest.fixture(scope="module")
def stopped(section, tmp_path_factory):
  """The workdir of a run that SIGTERM has stopped after step 5, with checkpoints 4 and 5."""
  with pytest.MonkeyPatch.context() as patch:
    interrupt(patch, 5, signal.SIGTERM)
    workdir = tmp_path_factory.mktemp("stopped")
    _, result = fit(section(), workdir)
  assert (result.finished, result.step) == (False, 5)
  assert "stopped by SIGTERM at step 5; the same command goes on from there" in log_of(workdir)
  return workdir


@pytest.fixture
def copy(stopped, tmp_path):
  return pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))


def test_a_signal_saves_the_step_and_the_same_command_goes_on(section, copy, whole, monkeypatch):
  assert steps_of(copy) == [4, 5]
  interrupt(monkeypatch, 7, signal.SIGINT)
  _, result = fit(section(), copy)
  assert (result.finished, result.step) == (False, 7)
  cfg, result = fit(section(), copy)
  assert result.finished and sums(cfg, result) == whole[1]


def cut(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 0xFF
  file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink])
def test_a_checkpoint_that_does_not_match_its_seal_is_set_aside(copy, damage):
  newest = copy / "checkpoints" / "5"
  damage(max((f for f in newest.rglob("*") if f.is_file()), key=lambda file: file.stat().st_size))
  found = checkpoint.Checkpoints(copy / "checkpoints", keep=2)
  assert found.steps() == [4] and (copy / "damaged" / "5").is_dir()
  ((step, reason),) = found.damaged
  words = {cut: r"has \d+ bytes of \d+", flip: "is altered", pathlib.Path.unlink: "is missing"}
  assert step == 5 and re.search(words[damage], reason)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(section, copy, whole):
  (copy / "checkpoints" / "5" / "SEAL.json").unlink()
  cut(copy / "checkpoints" / "5" / "params" / "_METADATA")
  cfg, result = fit(section(), copy)
  assert "checkpoint 5 is damaged (SEAL.json is missing)" in log_of(copy)
  assert "resumed at step 4" in log_of(copy)
  assert result.finished and sums(cfg, result) == whole[1]


def test_another_number_of_devices_agrees_to_tolerance(section, copy, whole):
  _, result = fit(section(mesh="data:2"), copy)
  assert result.finished and "resumed at step 5" in log_of(copy)
  some = max(jax.tree.leaves(result.state.params), key=lambda leaf: leaf.size)
  assert len(some.sharding.device_set) == 2
  assert_close(jax.device_get(result.state.params), jax.device_get(whole[0].params))


def test_a_changed_config_says_which_keys_differ_and_touches_nothing(section, copy):
  before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
  changes = {"model": {"width": 32}, "train": {"lr_peak": 0.5, "log_every": 3}}
  with pytest.raises(Wrong, match=r"holds a run of another config \(2 keys differ") as told:
    fit(section(**changes), copy)
  assert "model.width: 16 -> 32" in str(told.value)
  assert "train.lr_peak: 0.003 -> 0.5" in str(told.value)
  assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def test_changed_text_is_refused(section, copy, text, tmp_path):
  other = shutil.copytree(text, tmp_path / "other")
  (other / "0.txt").write_text("another first document, of other words")
  config_file = copy / "config.json"  # the same path with other content, as far as the run can tell
  config_file.write_text(config_file.read_text().replace(str(text), str(other)))
  with pytest.raises(Wrong, match="the text of this run has changed"):
    fit(section(data={"source": f"text:{other}"}), copy)


def test_a_workdir_that_cannot_be_written_to_is_refused(section, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(Wrong, match="cannot be written to .*; choose another with --workdir=DIR"):
    fit(section(), tmp_path / "file" / "run")


def test_numbers_that_are_not_finite_stop_the_run_with_the_last_good_state(section, tmp_path):
  wild = section(train={"lr_peak": 1e30, "bad_steps": 3, "checkpoint_every": 100})
  with pytest.raises(
    Failed, match=r"not finite in 3 steps in a row \(2 to 4\); .* step 1, is kept"
  ):
    fit(wild, tmp_path)
  assert steps_of(tmp_path) == [1]
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  skipped = [line["skipped"] for line in lines if line["kind"] == "train"]
  assert skipped == [0, 1, 2]
  with pytest.raises(Failed, match=r"not finite in 4 steps in a row \(2 to 5\)"):
    fit(config.merge(wild, {"train": {"bad_steps": 4}}), tmp_path)
  assert "resumed at step 1" in log_of(tmp_path)
