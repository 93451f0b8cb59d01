"""Token by token: what the layers before found, added; normalised; three layers; probabilities."""

import math

import numpy as np

from moejax.routers.depth_averaged import Config
from oracle import best, columns, softmax

CASES = (Config(), Config(k=3), Config(k=2, average=False))


def gelu(value):
  return 0.5 * value * (1 + math.erf(value / math.sqrt(2)))


def logits(variables, inputs, cfg):
  p, rows = variables["params"], []
  for n, x_D in enumerate(np.asarray(inputs.x_ND, np.float64)):
    r_R = x_D @ p["in_DR"] + p["in_R"]
    if cfg.average:
      r_R = r_R + p["scale_depth_R"] * inputs.carry["averaged_NR"][n]
    u_R = r_R / math.sqrt(sum(r_R**2) / len(r_R) + cfg.norm_eps) * p["scale_norm_R"]
    for name in ("first", "second"):
      u_R = np.array([gelu(v) for v in u_R @ p[f"{name}_RR"] + p[f"{name}_R"]])
    rows.append(u_R @ columns(p, "gate_R"))
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      prob_U = softmax(logit_U)
      for e in best(prob_U + inputs.state["bias_U"], cfg.k)[: inputs.knobs["k_active"]]:
        weight_NU[n, e] = prob_U[e]
        if e >= inputs.num_experts:
          break
  return weight_NU
