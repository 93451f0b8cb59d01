"""Experts of one modality and experts of all, with a linear router for every modality.

Paper:  Wang et al. 2025 (MoIIE), arXiv:2508.09779.
Plan:   TokenPlan.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/moiie.py
Differs from the paper: any split instead of quarters, and more modalities than two; a token is of
        its own modality, where the paper's code looks at the next token, too.

Of n experts modality 0 owns the first, and modalities 1, 2, ... own the last ones; those between
are for all. What a token may not choose has the logit -inf.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import params, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  own: tuple[float, ...] = (0.25, 0.25)  # share of the experts that only this modality may choose
  renormalise: bool = True  # gates that sum to one

  def __post_init__(self):
    if not self.own or min(self.own) < 0 or sum(self.own) > 1 + 1e-9:
      raise Wrong(
        f"modality: own is {list(self.own)}; give one share of at least 0 per modality, at most 1"
        " in all, as in MoIIE's (0.25, 0.25)."
      )

  @property
  def modalities(self) -> int:
    """How many there are."""
    return len(self.own)


def allowed(cfg: Config, num_experts: int) -> np.ndarray:
  """[modality, expert]: which experts a modality may choose.

  >>> allowed(Config(), 4).astype(int).tolist()
  [[1, 1, 1, 0], [0, 1, 1, 1]]
  """
  size = [share * num_experts for share in cfg.own]
  if any(abs(n - round(n)) > 1e-6 for n in size):
    raise Wrong(
      f"modality: shares {list(cfg.own)} of {num_experts} experts are no whole numbers; change"
      " model.moe.router.own or model.moe.num_experts."
    )
  first, *others = (round(n) for n in size)
  owner_E = np.full(num_experts, -1)
  owner_E[:first] = 0
  owner_E[num_experts - sum(others) :] = np.repeat(np.arange(1, cfg.modalities), others)
  return (owner_E == -1)[None] | (owner_E[None] == np.arange(cfg.modalities)[:, None])


def select(logit_NU, inputs, cfg):
  """The k highest."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities among the ids that the token may choose."""
  return routing.gates(jax.nn.softmax(logit_NU), expert_NK, cfg.renormalise)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    cfg, (N, D), E, Z = self.cfg, inputs.x_ND.shape, inputs.num_experts, len(inputs.virtual)
    may = np.concatenate([allowed(cfg, E), np.ones((cfg.modalities, Z), bool)], axis=1)
    if cfg.k > may.sum(1).min():
      raise Wrong(
        f"modality: a token chooses k={cfg.k} ids and its modality may have only"
        f" {may.sum(1).min()} of them; lower model.moe.router.k or model.moe.router.own."
      )
    if inputs.modality_N is None:
      raise Wrong(
        "modality: the tokens have no modality; list the labels of each in data.modalities, or give"
        " the model modality_N."
      )
    logit_NU = jnp.full((N, E + Z), -jnp.inf)
    for i in range(cfg.modalities):
      gates = [params.weight(self, f"gate{i}_DE", over="D", D=D, E=E)]
      if Z:
        gates.append(params.weight(self, f"gate{i}_DZ", over="D", D=D, Z=Z))
      own_NU = jnp.where(may[i][None], routing.logits(inputs.x_ND, *gates), -jnp.inf)
      logit_NU = jnp.where((inputs.modality_N == i)[:, None], own_NU, logit_NU)
    return logit_NU, inputs
