"""The cache folder: whole or not there, whoever prepares, dies or finds the disk full."""

import errno
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from moejax.core.plugin import Wrong
from moejax.data import caches

BUILDER = """
import pathlib, sys, time
from moejax.data import caches

def build(folder):
  with open(sys.argv[2], "a") as log:
    log.write("built\\n")
  for n in range(5):
    (folder / str(n)).write_text("x")
    time.sleep(float(sys.argv[3]))

folder = caches.prepare(pathlib.Path(sys.argv[1]), build)
assert len(list(folder.iterdir())) == 5
"""


def _start(folder, log, pause):
  return subprocess.Popen([sys.executable, "-c", BUILDER, str(folder), str(log), str(pause)])


def test_processes_that_prepare_at_once_build_once(tmp_path):
  folder, log = tmp_path / "a" / "made", tmp_path / "log"
  running = [_start(folder, log, 0.05) for _ in range(3)]
  assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
  assert log.read_text() == "built\n"
  assert [path.name for path in folder.parent.glob("made*")] == ["made"]


def test_a_process_killed_half_way_leaves_nothing_that_counts(tmp_path):
  folder, log = tmp_path / "made", tmp_path / "log"
  process = _start(folder, log, 60)
  deadline = time.time() + 60
  while not list(tmp_path.glob("made.tmp-*/0")) and time.time() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not folder.exists() and list(tmp_path.glob("made.tmp-*"))
  assert caches.prepare(folder, lambda new: (new / "whole").write_text("x")) == folder
  assert sorted(path.name for path in tmp_path.glob("made*")) == ["made"]
  assert [path.name for path in folder.iterdir()] == ["whole"]


def test_a_rename_that_comes_second_is_no_error(tmp_path):
  folder = tmp_path / "made"

  def build(new):
    (new / "mine").write_text("x")
    folder.mkdir()  # as a process does that no lock stops
    (folder / "theirs").write_text("x")

  assert [path.name for path in caches.prepare(folder, build).iterdir()] == ["theirs"]


def _full(folder: pathlib.Path):
  (folder / "half").write_text("x")
  raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
  with pytest.raises(Wrong, match="cannot write .*made: No space left on device; free space"):
    caches.prepare(tmp_path / "made", _full)
  assert not list(tmp_path.glob("made*"))


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("not a folder")
  with pytest.raises(Wrong, match="cannot write .*: Not a directory; .*set data.cache or"):
    caches.prepare(tmp_path / "file" / "tokens" / "made", _full)


def test_the_root_is_the_config_then_the_variable_then_the_home(monkeypatch, tmp_path):
  monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path))
  assert caches.root(None) == tmp_path
  assert caches.root("there") == pathlib.Path("there")
  monkeypatch.delenv("MOEJAX_CACHE")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert caches.root(None) == tmp_path / ".cache" / "moejax"
