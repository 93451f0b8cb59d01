"""Does moving biases balance the load without the price of a balance loss?"""

import numpy as np

from configs.studies.auxfree_vs_aux import ARMS  # noqa: F401  the arms are data
from experiments import verdicts

CLAIM = (
  "Loss-free balancing (sign) ends with a more even load than a balance loss of 1e-3, and with a"
  " lower held-out loss than a balance loss of 1e-2."
)
LAST = 0.25  # of the logged steps: their loads together stand for the end of the run
SHOWN = ("max_vio", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  loads = [run.load(layer)[1] for layer in run.layers]
  last = max(1, round(LAST * len(loads[0])))
  mean_LU = np.array([load_SU[-last:].mean(0) for load_SU in loads])
  layers = run.train[-1]["layers"].values()
  return {
    "loss": run.last("loss", "eval"),
    "max_vio": float((mean_LU.max(1) * mean_LU.shape[1] - 1).mean()),
    "dead": run.layer_mean("dead"),
    "bias_max": max(layer.get("bias_max", 0.0) for layer in layers),
  }


def verdict(table) -> str:
  """Both halves of the claim: the weaker word of the two."""
  even = verdicts.lower(table, "max_vio", "sign", than="aux_1e-3")
  better = verdicts.lower(table, "loss", "sign", than="aux_1e-2")
  return f"{verdicts.weakest(even, better)}: load {even}; loss {better}"
