"""Slot by slot a mean over its group, token by token a mean over all slots."""

import numpy as np

from moejax.routers.soft import Config
from oracle import softmax

CASES = (Config(),)


def slot_logits(variables, inputs):
  """[N, E, C], one angle at a time."""
  phi_DEC, scale = variables["params"]["phi_DEC"], variables["params"]["scale_H"][0]
  D, E, C = phi_DEC.shape
  logit_NEC = np.zeros((len(inputs.x_ND), E, C))
  for n, e, c in np.ndindex(logit_NEC.shape):
    x_D, phi_D = inputs.x_ND[n].astype(np.float64), phi_DEC[:, e, c]
    logit_NEC[n, e, c] = scale * (x_D @ phi_D) / np.linalg.norm(x_D) / np.linalg.norm(phi_D)
  return logit_NEC


def logits(variables, inputs, cfg):
  """Of an expert: the sum of the exponentials of its slots."""
  return np.log(np.exp(slot_logits(variables, inputs)).sum(2))


def route(logit_NU, inputs, cfg):
  """Both tables side by side, as the battery compares them."""
  slot_NEC = np.asarray(inputs.extras["slot_NEC"], np.float64)
  dispatch_NEC, combine_NEC = np.zeros(slot_NEC.shape), np.zeros(slot_NEC.shape)
  for tokens in np.split(np.arange(len(slot_NEC)), inputs.groups):
    tokens = [n for n in tokens if inputs.valid_N[n]]
    for e, c in np.ndindex(slot_NEC.shape[1:]):
      dispatch_NEC[tokens, e, c] = softmax(slot_NEC[tokens, e, c])
    for n in tokens:
      combine_NEC[n] = softmax(slot_NEC[n].ravel()).reshape(slot_NEC.shape[1:])
  return np.concatenate([dispatch_NEC, combine_NEC], axis=2).reshape(len(slot_NEC), -1)
