"""A run that is killed and started again ends bit for bit where an uninterrupted one ends."""

import json
import random
import re
import signal
import time

import pytest

VOLATILE = ("time", "tokens_per_s", "step_ms", "mfu")  # what a clock says
EXPERTS = {"num_experts": 4, "hidden": 16, "router": {"name": "topk", "k": 2}}
STAGES = [
  {"steps": 4},
  {"steps": 4, "transform": {"name": "spawn", "moe": EXPERTS}},
  {"steps": 4, "changes": {"model.moe.router.k": 1}},
]


@pytest.fixture(scope="session")
def staged(section):
  """Dense, then four spawned experts, then one of them for each token."""
  dense = {"layers": [{"ffn": "mlp"}]}
  return section(model=dense, stages=STAGES, train={"checkpoint_every": 3, "ema": 0.9})


def end(process, code=0):
  """Waits for the process to end as it should."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
  return out


def state(workdir):
  return json.loads((workdir / "state.json").read_text())


def last(workdir):
  """The last step that a run has told of."""
  file = workdir / "metrics.jsonl"
  found = (
    re.findall(r'"kind": "train", "stage": 0, "step": (\d+),', file.read_text())
    if file.exists()
    else []
  )
  return max(map(int, found), default=0)


def history(workdir):
  """The numbers of every step, without those of a clock."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  kept = [line for line in lines if line["kind"] in ("train", "eval", "stage")]
  return [{k: v for k, v in line.items() if k not in VOLATILE} for line in kept]


@pytest.fixture(scope="session")
def uninterrupted(start, staged, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  end(start(staged, workdir))
  return workdir


def test_killed_in_every_stage(start, staged, uninterrupted, tmp_path):
  draw = random.Random()  # another step of each stage every time
  steps = [draw.randint(first, first + 3) for first in (1, 5, 9)]
  for step in steps:
    end(start(staged, tmp_path, f"log:train:{step}:SIGKILL"), -signal.SIGKILL)
  end(start(staged, tmp_path))
  assert state(tmp_path) == state(uninterrupted), f"killed at {steps}"
  assert history(tmp_path) == history(uninterrupted), f"killed at {steps}"
  assert any("resume" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay(
  start, staged, uninterrupted, tmp_path
):
  process = start(staged, tmp_path, "before:6:FULL")
  _, err = process.communicate(timeout=300)
  assert process.returncode == 1 and "orbax" not in err  # no report from every thread
  assert re.search(r"error: the .* could not .*\(File too large\).* intact. Free space", err)
  end(start(staged, tmp_path))
  log = (tmp_path / "log.txt").read_text()
  assert "resumed at step 4" in log and "damaged" not in log
  assert state(tmp_path) == state(uninterrupted)


@pytest.mark.slow
def test_killed_at_any_moment(start, section, tmp_path):
  """Six times, wherever the run then is: in a step, in a checkpoint, between."""
  long, draw = (
    section(train={"steps": 60, "checkpoint_every": 3, "eval_every": 20}),
    random.Random(),
  )
  alone, killed = tmp_path / "alone", tmp_path / "killed"
  end(start(long, alone))
  for _ in range(6):
    before, process = last(killed), start(long, killed)
    while last(killed) <= before and process.poll() is None:
      time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 0.5))
    process.kill()
    process.communicate()
  end(start(long, killed))
  assert state(killed) == state(alone) and history(killed) == history(alone)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 6])
def test_killed_while_a_checkpoint_is_written(start, section, tmp_path, step):
  alone, killed = tmp_path / "alone", tmp_path / "killed"
  end(start(section(), alone))
  end(start(section(), killed, f"save:{step}:SIGKILL"), -signal.SIGKILL)
  end(start(section(), killed))
  assert state(killed) == state(alone) and history(killed) == history(alone)
  assert "damaged" not in (killed / "log.txt").read_text()
