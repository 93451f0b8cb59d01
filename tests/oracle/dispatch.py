"""What every dispatch computes: one token, one expert, one choice at a time."""

import numpy as np

from moejax.core.plan import SoftPlan, TokenPlan


def swiglu(x_D, params, e: int):
  """One expert on one vector."""
  g_F, u_F = x_D @ params["wg_EDF"][e], x_D @ params["wu_EDF"][e]
  return (g_F / (1 + np.exp(-g_F)) * u_F) @ params["wo_EFD"][e]


def run(plan, x_ND, params):
  """y of a plan in which tokens or experts choose, or in which slots are mixtures."""
  if isinstance(plan, SoftPlan):
    return mixtures(plan, x_ND, params)
  y_ND = np.zeros(x_ND.shape)
  by_token = isinstance(plan, TokenPlan)
  ids, gates = (plan.expert_NK, plan.gate_NK) if by_token else (plan.token_EC, plan.gate_EC)
  for (i, j), other in np.ndenumerate(ids):
    n, e = (i, other) if by_token else (other, i)
    if n >= 0 and 0 <= e < plan.num_experts:
      y_ND[n] += gates[i, j] * swiglu(x_ND[n], params, e)
  return y_ND


def mixtures(plan, x_ND, params):
  """Each slot reads all tokens of its group, each token all slots of its group."""
  (N, E, C), y_ND = plan.dispatch_NEC.shape, np.zeros(x_ND.shape)
  for tokens in np.split(np.arange(N), plan.groups):
    for e, c in np.ndindex(E, C):
      slot_D = sum(plan.dispatch_NEC[n, e, c] * x_ND[n] for n in tokens)
      for n in tokens:
        y_ND[n] += plan.combine_NEC[n, e, c] * swiglu(slot_D, params, e)
  return y_ND
