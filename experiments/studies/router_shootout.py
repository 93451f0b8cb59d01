"""Do other causal routers match top-2 on held-out text at equal active FLOPs?"""

import math

import numpy as np

from configs.studies.router_shootout import ARMS
from experiments import heldout
from moejax.lab import counterfactual
from moejax.train import restore

CLAIM = "At equal active FLOPs every causal router comes within 2 per cent of top-2's loss."
MARGIN = 0.02
FACTOR = 1.25  # of the capacity whose drops are counted, whether or not the arm has one
LAYER, TOKENS = "layer_001", 32  # of which the regret is measured
SHOWN = ("loss", "max_vio", "regret")


def measure(run) -> dict:
  """One row of the table, from a finished run and its last checkpoint on held-out text."""
  found, train = heldout.choices(run.path), run.config["train"]
  tokens = train["batch_size"] * run.config["data"]["seq_len"]
  regret = counterfactual.measure(restore.load(run.path), LAYER, TOKENS)
  return {
    "loss": run.last("loss", "eval"),
    "experts": float(found.real_LN().mean()),
    "max_vio": run.layer_mean("max_vio"),
    "dropped": dropped(found.expert_LNK, tokens, found.experts, FACTOR),
    "regret": regret["regret"],
    "captured": regret["captured"],
    "step_ms": float(np.median(run.series("step_ms")[1])),
    "flops_per_token": run.environment["flops_per_token"],
  }


def dropped(expert_LNK, tokens: int, experts: int, factor: float) -> float:
  """The share of choices beyond the capacity of experts, in batches of so many tokens.

  >>> dropped(np.array([[[0], [0], [0], [1]]]), tokens=4, experts=2, factor=1.0)
  0.25
  """
  beyond = total = 0
  for expert_M in expert_LNK.reshape(-1, tokens * expert_LNK.shape[2]):
    count_E = np.bincount(expert_M[expert_M >= 0], minlength=experts)
    capacity = math.ceil(factor * count_E.sum() / experts)
    beyond, total = beyond + np.maximum(count_E - capacity, 0).sum(), total + count_E.sum()
  return float(beyond / max(total, 1))


def verdict(table) -> str:
  """'holds' if all are inside the margin, 'fails' if one is outside by more than its spread."""
  base = table.values("topk", "loss").mean()
  excess = {arm: table.values(arm, "loss") / base - 1 for arm in ARMS if arm != "topk"}
  order = sorted(excess, key=lambda arm: excess[arm].mean())
  numbers = ", ".join(f"{arm} {100 * excess[arm].mean():+.2f} %" for arm in order)
  outside = [arm for arm, v in excess.items() if v.mean() > MARGIN]
  clearly = [arm for arm in outside if excess[arm].mean() - np.ptp(excess[arm]) > MARGIN]
  word = "fails" if clearly else "unclear" if outside else "holds"
  return f"{word}: top-2 loss {base:.4f}; {numbers}"
