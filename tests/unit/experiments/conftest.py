"""Runs without training: a program that writes what a run of experiments.run would write."""

import sys

import pytest

from experiments import launch

STAND_IN = """
import json, os, pathlib, sys, time
options = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(options["--workdir"])
(folder / "pid").write_text(str(os.getpid()))
(folder / "pid").rename(folder / "started")
if options.get("--config.train.lr_peak") == "0.5":
  sys.exit("error: the loss is not finite; lower train.lr_peak.")
if options.get("--config.train.lr_peak") == "0.25":
  time.sleep(60)
loss = 3 - float(options["--config.train.lr_peak"]) * 10
rows = [
  {"kind": "train", "step": 2, "flops": 2e9, "tokens": 64, "tokens_per_s": 10.0, "time": 1.0},
  {"kind": "eval", "step": 1, "loss": loss + 1, "tokens": 5, "bits_per_byte": 2.0},
  {"kind": "eval", "step": 2, "loss": loss + 0.1, "tokens": 5, "bits_per_byte": 1.5},
  {"kind": "eval", "step": 2, "loss": loss, "tokens": 9, "perplexity": 8.0, "bits_per_byte": 1.0},
  {"kind": "done", "step": 2, "time": 1.5},
]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
size = {"parameters": {"total": 50, "active": 20}, "flops_per_token": 3e7}
(folder / "environment.json").write_text(json.dumps(size))
"""


@pytest.fixture
def stand_in(monkeypatch):
  """Jobs run the stand-in; a learning rate of 0.5 fails, one of 0.25 goes on for ever."""

  def command(job):
    return [sys.executable, "-c", STAND_IN, *job.argv, f"--workdir={job.workdir}"]

  monkeypatch.setattr(launch.Job, "command", command)
