"""Token by token, head by head: softmax over the best of all slots."""

import numpy as np

from moejax.layers.pkm import Config
from oracle import softmax
from oracle.layers import slots

CASES = (Config(keys=8, k=4, key_width=6), Config(keys=8, k=8, heads=1, key_width=6, gated=True))


def output(params, state, x_ND, cfg):
  y_ND = np.zeros(x_ND.shape)
  for n, x_D in enumerate(x_ND):
    total_F = np.zeros(params["value_PF"].shape[1])
    for head in range(cfg.heads):
      found = slots(params["router"], x_D, head, cfg)
      for (slot, _), weight in zip(found, softmax([s for _, s in found]), strict=True):
        total_F += weight * params["value_PF"][slot]
    if cfg.gated:
      gate_F = x_D @ params["wg_DF"]
      total_F = (total_F * gate_F / (1 + np.exp(-gate_F))) @ params["wo_FD"]
    y_ND[n] = total_F
  return y_ND
