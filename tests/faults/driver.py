"""python driver.py CONFIG WORKDIR CACHE [WHEN]: one run in a process of its own, which may end early.

WHEN is log:KIND:STEP:SIGNAL, a signal to itself right after the line of metrics of that kind and
step, or save:STEP:SIGNAL, while the checkpoint of that step is being written. A run that comes to
its end, or is stopped, writes the sums of its state and of its next batch to WORKDIR/state.json.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys


def main(file, workdir, cache, when=""):
  """Runs, and says how it ended."""
  import jax

  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  from moejax.core import config
  from moejax.train import loop

  cfg = config.resolve(json.loads(pathlib.Path(file).read_text()))
  if when:
    arm(*when.split(":"))
  result = loop.fit(cfg, workdir, terminal=False)
  pathlib.Path(workdir, "state.json").write_text(json.dumps(sums(cfg, result), indent=1))
  return 0 if result.finished else 3


def arm(what, *how):
  """Plants the signal."""
  from moejax.train import checkpoint, rundir

  *where, name = how
  send = lambda: os.kill(os.getpid(), getattr(signal, name))
  if what == "log":
    log = rundir.RunDir.log

    def spied(self, kind, **fields):
      log(self, kind, **fields)
      if [kind, str(fields["step"])] == where:
        send()

    rundir.RunDir.log = spied
  else:
    save = checkpoint.Checkpoints.save

    def begun(self, step, *rest):
      save(self, step, *rest)
      if [str(step)] == where:
        send()

    checkpoint.Checkpoints.save = begun


def sums(cfg, result) -> dict:
  """A sum for every array of the state, and for the batch that would come next."""
  import jax
  import numpy as np

  from moejax.data import text

  state = result.state
  trees = {name: getattr(state, name) for name in ("params", "opt_state", "model_state", "ema")}
  corpus = text.open(cfg.data, cfg.train.seed)
  batches = corpus.batches("train", cfg.train.batch_size, first_step=result.step)
  trees["batch"] = next(batches)
  leaves = jax.tree_util.tree_flatten_with_path(trees)[0]
  digest = lambda x: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
  found = {jax.tree_util.keystr(path): digest(jax.device_get(x)) for path, x in leaves}
  return {"step": result.step, **found}


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
