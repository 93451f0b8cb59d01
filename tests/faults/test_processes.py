"""Real processes over loopback: their shares of a batch, checkpoints of all, one that is killed."""

import json
import re
import socket
import subprocess
import sys
import time

import driver
import jax
import numpy as np
import pytest
from close import assert_close

from moejax.core.plugin import Failed, Wrong
from moejax.train import mesh as meshes
from moejax.train import processes, restore

BOUND = 60  # seconds within which the others have ended; they end after one heartbeat at most
LONG = {"train": {"steps": 8, "checkpoint_every": 2}}


@pytest.fixture
def launch(start):
  """launch(section, workdir, mesh, n, {process: WHEN}) -> n processes that run it together."""
  running = []

  def run(section, workdir, mesh, n, when=None):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    at = lambda i: ((when or {}).get(i, ""), f"{i}/{n}@{port}")
    running.extend(start({**section, "mesh": mesh}, workdir, *at(i)) for i in range(n))
    return running[-n:]

  yield run
  for process in running:
    process.kill()
    process.communicate()


def ends(group, *codes, seconds=240):
  """What each wrote to (stdout, stderr), once all have ended with these exit codes."""
  told, end = [], time.monotonic() + seconds
  for process in group:
    told.append(process.communicate(timeout=max(end - time.monotonic(), 1)))
  found = [process.returncode for process in group]
  assert found == list(codes), "\n".join([str(found), *(err for _, err in told)])
  return told


def lines(workdir, kind):
  text = (workdir / "metrics.jsonl").read_text().splitlines()
  return [found for found in map(json.loads, text) if found["kind"] == kind]


@pytest.fixture(scope="session")
def alone(start, section, tmp_path_factory):
  """The workdir of the same run in one process, on one device."""
  workdir = tmp_path_factory.mktemp("alone")
  ends([start({**section(**LONG), "mesh": "data:1"}, workdir)], 0)
  return workdir


def same_end(workdir, alone):
  assert_close(restore.load(workdir).variables, restore.load(alone).variables)
  loss = lambda where: [line["loss"] for line in lines(where, "train")]
  np.testing.assert_allclose(loss(workdir), loss(alone), rtol=1e-5)


@pytest.mark.mesh
def test_two_processes_with_a_share_each_train_as_one_and_one_of_them_writes(
  launch, section, alone, tmp_path
):
  told = ends(launch(section(**LONG), tmp_path, "expert:2", 2), 0, 0)
  same_end(tmp_path, alone)
  assert [line["step"] for line in lines(tmp_path, "train")] == list(range(1, 9))
  assert "step 8/8" in told[0][0] and "step" not in told[1][0]


@pytest.mark.mesh
def test_a_run_goes_on_with_any_number_of_processes(launch, section, alone, tmp_path):
  """2, then 1, then 2, then 4; a signal to one of them stops and saves all."""
  stop = lambda step: f"log:train:{step}:SIGTERM"
  ends(launch(section(**LONG), tmp_path, "data:2", 2, {1: stop(2)}), 3, 3)
  ends(launch(section(**LONG), tmp_path, "data:1", 1, {0: stop(4)}), 3)
  ends(launch(section(**LONG), tmp_path, "expert:2", 2, {0: stop(6)}), 3, 3)
  ends(launch(section(**LONG), tmp_path, "data:2,expert:2", 4), 0, 0, 0, 0)
  same_end(tmp_path, alone)
  assert [line["step"] for line in lines(tmp_path, "resume")] == [2, 4, 6]
  assert not (tmp_path / "damaged").exists()


@pytest.mark.mesh
@pytest.mark.parametrize("killed", [1, 0])
def test_when_one_is_killed_the_others_end_and_the_same_command_goes_on(
  launch, section, alone, tmp_path, killed
):
  group = launch(section(**LONG), tmp_path, "data:2", 2, {killed: "log:train:5:SIGKILL"})
  group[killed].wait(timeout=240)
  begin = time.monotonic()
  codes = {killed: -9, 1 - killed: 1}
  told = ends(group, codes[0], codes[1], seconds=BOUND)
  print(f"process {1 - killed} ended {time.monotonic() - begin:.1f} s after {killed} was killed")
  assert "has lost another one" in told[1 - killed][1]
  ends(launch(section(**LONG), tmp_path, "data:2", 2), 0, 0)
  same_end(tmp_path, alone)
  (resumed,) = lines(tmp_path, "resume")
  assert resumed["step"] in (2, 4), "4 may not have been complete"


def test_the_environment_is_read_and_half_of_an_address_is_refused(monkeypatch):
  for name in (*processes.HOSTS, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  assert processes.found() == ""
  step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_LOCALID": "0"}
  for name, value in {**step, "SLURM_NTASKS": "1"}.items():
    monkeypatch.setenv(name, value)
  assert processes.found() == "", "a job of one task is no run of several processes"
  monkeypatch.setenv("SLURM_NTASKS", "2")
  assert processes.found() == "Slurm"
  monkeypatch.delenv("SLURM_STEP_NODELIST")
  assert processes.found() == "", "outside srun there is no step"
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "w-0,w-1")
  assert processes.found() == "GKE"
  with pytest.raises(Wrong, match="--processes and --process of .* are missing; give all three"):
    processes.start("localhost:1")
  with pytest.raises(Wrong, match=r"--process=2 is not one of 0\.\.1"):
    processes.start("localhost:1", 2, 2)


def test_one_process_has_all_rows_and_agrees_with_itself():
  assert processes.share(meshes.make("data:2,expert:2,tensor:2")) == (0, 1)
  assert processes.agreed(True) and not processes.agreed(False)
  assert processes.first(lambda: 3, None) == 3
  with pytest.raises(jax.errors.JaxRuntimeError), processes.together():
    raise jax.errors.JaxRuntimeError("Gloo: not of other processes")


def test_a_process_that_is_gone_is_one_sentence(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(Failed, match=r"0 of 2 has lost another one \(Gloo: gone\); .* Run the same"):
    with processes.together():
      raise ValueError("Gloo: gone\nmore")
  with pytest.raises(ValueError, match="something else"), processes.together():
    raise ValueError("something else")


def test_the_command_refuses_half_of_an_address():
  words = ["-m", "experiments.run", "--config=configs/quickstart.py", "--coordinator=localhost:1"]
  done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
  assert done.returncode == 2 and re.search("error: processes: .*are missing", done.stderr)
  assert driver.HEARTBEAT < BOUND
