"""Do the classic routers come out in the order of their papers on a small text?"""

from configs.studies.baselines import ARMS
from experiments import verdicts

CLAIM = (
  "At equal active FLOPs and equal expert weights, hash routing has the highest held-out loss of"
  " the classic routers, and top-2 or DeepSeekMoE a lower one than every router of one choice."
)
SEVERAL = ("gshard", "deepseek")
ONE = tuple(arm for arm in ARMS if arm not in ("hash", *SEVERAL))
TOLERANCE = 0.04  # of the FLOPs per token: what the routers themselves cost


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "max_vio": run.layer_mean("max_vio"),
    "drop_fraction": run.layer_mean("drop_fraction"),
    "flops_per_token": run.environment["flops_per_token"],
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """'holds' if every comparison of the claim is clear, 'fails' if one is clearly the other way."""
  cost = {arm: table.values(arm, "flops_per_token")[0] for arm in ARMS}
  if max(cost.values()) / min(cost.values()) - 1 > TOLERANCE:
    numbers = ", ".join(f"{arm} {value:.4g}" for arm, value in cost.items())
    return f"unclear: FLOPs per token differ by more than {TOLERANCE:.0%}: {numbers}"
  loss = {arm: table.values(arm, "loss").mean() for arm in ARMS}
  best = min(SEVERAL, key=lambda arm: loss[arm])
  pairs = [(arm, "hash") for arm in (*ONE, *SEVERAL)] + [(best, arm) for arm in ONE]
  words = {
    f"{a} below {b}": verdicts.lower(table, "loss", a, than=b).split(":")[0] for a, b in pairs
  }
  word = verdicts.weakest(*words.values())
  order = ", ".join(f"{arm} {loss[arm]:.4f}" for arm in sorted(ARMS, key=lambda arm: loss[arm]))
  doubts = ", ".join(f"{pair} {w}" for pair, w in words.items() if w != "holds")
  return f"{word}: loss {order}" + (f"; of the comparisons {doubts}" if doubts else "")
