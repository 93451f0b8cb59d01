"""Does a decision for many tokens need fewer experts, and what does it lose?"""

import itertools

import numpy as np

from configs.studies.chunk_routing import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import heldout, verdicts

CLAIM = (
  "From decisions for 1 token to decisions for 4, 16 and 64, the experts that 128 tokens in a row"
  " use fall with every step, and the held-out loss of 64 is above that of 1."
)
STRETCH = 16  # tokens
SHOWN = ("experts_per_sequence", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run and the experts that its last checkpoint uses."""
  found, T = heldout.choices(run.path), run.config["data"]["seq_len"]
  return {
    "loss": run.last("loss", "eval"),
    "experts_per_stretch": distinct(found.expert_LNK, STRETCH),
    "experts_per_sequence": distinct(found.expert_LNK, T),
    "tokens_per_s": run.last("tokens_per_s"),
  }


def distinct(expert_LNK, stretch: int) -> float:
  """Different experts in every `stretch` tokens, mean over them and layers; empty ones apart.

  >>> distinct(np.array([[[0], [0], [1], [2], [-1], [-1]]]), 2)
  1.5
  """
  chosen_SM = expert_LNK.reshape(-1, stretch * expert_LNK.shape[2])
  used_S = np.array([len(np.unique(chosen_M[chosen_M >= 0])) for chosen_M in chosen_SM])
  return float(used_S[used_S > 0].mean())


def verdict(table) -> str:
  """'holds' if both parts do by more than the spread over seeds."""
  arms = ("c1", "c4", "c16", "c64")
  steps = [
    verdicts.lower(table, "experts_per_sequence", longer, than=shorter)
    for shorter, longer in itertools.pairwise(arms)
  ]
  loss = verdicts.lower(table, "loss", "c1", than="c64")
  word = verdicts.weakest(*steps, loss)
  means = lambda column: ", ".join(f"{arm} {table.values(arm, column).mean():.3f}" for arm in arms)
  return f"{word}: experts per sequence {means('experts_per_sequence')}; {loss}"
