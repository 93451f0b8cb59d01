"""python driver.py CONFIG WORKDIR CACHE [WHEN [I/N@PORT]]: a run in a process of its own, which may
end early, or in the I-th of N processes that meet at a port.

WHEN is log:KIND:STEP:FAULT, right after the line of metrics of that kind and step, or
before:STEP:FAULT or save:STEP:FAULT, before or while the checkpoint of that step is written. FAULT
is the name of a signal, or FULL: no file can grow any more. A run that comes to its end, or is
stopped, writes the sums of its state and of its next batch to WORKDIR/state.json.
"""

import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import sys

import jax
import numpy as np

from experiments import command
from moejax.core import config
from moejax.data import text
from moejax.train import checkpoint, loop, processes, rundir

QUICK = {
  "jax_compilation_cache_dir": None,
  "jax_persistent_cache_min_compile_time_secs": 0.0,
  "jax_persistent_cache_min_entry_size_bytes": -1,
  "jax_disable_most_optimizations": True,
}
HEARTBEAT = 10  # seconds, of several processes
USUAL = {"jax_disable_most_optimizations": False}  # an option that JAX does not show


def hurry(cache):
  """Compiles as little as can be."""
  for name, value in (QUICK | {"jax_compilation_cache_dir": str(cache)}).items():
    jax.config.update(name, value)


def main(argv):
  """Runs, and says how it ended."""
  file, workdir, cache, when, where = [*argv, "", ""][:5]
  hurry(cache)
  if where:
    process, total, port = map(int, re.split("[/@]", where))
    processes.start(f"localhost:{port}", process, total, timeout=HEARTBEAT, meet=60)
  cfg = config.resolve(json.loads(pathlib.Path(file).read_text()))
  if when:
    arm(*when.split(":"))
  result = loop.fit(cfg, workdir, terminal=False)
  if not where:
    pathlib.Path(workdir, "state.json").write_text(json.dumps(sums(cfg, result), indent=1))
  return 0 if result.finished else 3


def arm(what, *how):
  """Plants the fault."""
  *where, fault = how
  if what == "log":
    log = rundir.RunDir.log

    def spied(self, kind, **fields):
      log(self, kind, **fields)
      if [kind, str(fields["step"])] == where:
        strike(fault)

    rundir.RunDir.log = spied
  else:
    save = checkpoint.Checkpoints.save

    def begun(self, step, *rest):
      if [what, str(step)] == ["before", *where]:
        strike(fault)
      save(self, step, *rest)
      if [what, str(step)] == ["save", *where]:
        strike(fault)

    checkpoint.Checkpoints.save = begun


def strike(fault):
  """A signal to this process, or no room for files any more."""
  if fault == "FULL":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
  else:
    os.kill(os.getpid(), getattr(signal, fault))


def sums(cfg, result) -> dict:
  """A sum for every array of the state, and for the batch that would come next."""
  state = result.state
  trees = {name: getattr(state, name) for name in ("params", "opt_state", "model_state", "ema")}
  corpus = text.open(cfg.data, cfg.train.seed)
  trees["batch"] = next(corpus.batches("train", cfg.train.batch_size, first_step=result.step))
  leaves = jax.tree_util.tree_flatten_with_path(trees)[0]
  digest = lambda x: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
  found = {jax.tree_util.keystr(path): digest(jax.device_get(x)) for path, x in leaves}
  return {"step": result.step, **found}


if __name__ == "__main__":
  command.leave(command.guard(main, sys.argv[1:]))
