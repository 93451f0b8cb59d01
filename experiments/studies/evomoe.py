"""Is a gate that goes from dense to sparse on spawned experts better than top-1 from scratch?"""

import numpy as np

from configs.studies.evomoe import ARMS
from experiments import verdicts
from moejax.core import tree
from moejax.train import restore
from moejax.train.metrics import moe_layers

CLAIM = (
  "At equal steps, experts spawned from one FFN behind a gate that goes from dense to sparse reach"
  " a lower held-out loss than top-1 from scratch, with one active expert at the end."
)
SHOWN = ("active_last", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  rows = [row for row in run.train if row.get("layers")]
  active = lambda row: float(np.mean([of["choices"] for of in row["layers"].values()]))
  return {
    "loss": run.last("loss", "eval"),
    "active_first": active(rows[0]),
    "active_last": active(rows[-1]),
    "expert_similarity": similarity(run.path),
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """The loss decides where the gate did end sparse."""
  last = table.values("diversified_dts", "active_last").mean()
  if last > 1.001:
    return f"unclear: the gate still has {last:.2f} active experts at the end"
  means = ", ".join(f"{arm} {table.values(arm, 'loss').mean():.4f}" for arm in ARMS)
  return f"{verdicts.lower(table, 'loss', 'diversified_dts', than='top1')}; mean losses {means}"


def similarity(path) -> float:
  """The mean cosine between two experts of a layer, by their input weights, over all layers."""
  trained = restore.load(path)
  params = tree.unstack(trained.variables["params"], trained.cfg.model)
  found = []
  for name, at in moe_layers(trained.cfg.model):
    flat_EM = np.asarray(tree.at(params[name], at)["wg_EDF"], np.float64)
    flat_EM = flat_EM.reshape(len(flat_EM), -1)
    unit_EM = flat_EM / np.linalg.norm(flat_EM, axis=1, keepdims=True)
    found.append((unit_EM @ unit_EM.T)[np.triu_indices(len(unit_EM), 1)].mean())
  return float(np.mean(found))
