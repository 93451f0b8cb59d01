"""The slow obvious thing: loops over tokens in NumPy, one file per component, found by its name.

A router's file has CASES (Configs), route() and logits(); an edit's CASES and edit(); a balance
rule's CASES, and loss() with even() and collapsed(), or update(). They are written to be believed,
not to be fast, and share nothing with the library but its Configs.
"""

import importlib
import pathlib

import numpy as np

ROOT = pathlib.Path(__file__).parent


def load(family: str, name: str):
  """The oracle of a component; one that is missing says which file to write."""
  path = ROOT / family / f"{name}.py"
  assert path.exists(), (
    f"moejax/{family}/{name}.py has no oracle: write tests/oracle/{family}/{name}.py with plain"
    " loops, as its neighbours do."
  )
  return importlib.import_module(f"oracle.{family}.{name}")


def softmax(logits) -> np.ndarray:
  """Of one token, in float64."""
  powers = np.exp(np.asarray(logits, np.float64) - np.max(logits))
  return powers / powers.sum()


def best(scores, k: int) -> list[int]:
  """The places of the k highest, highest first; of equal ones the first."""
  return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def sigmoid(logits) -> np.ndarray:
  """In float64."""
  return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def columns(params, stem: str) -> np.ndarray:
  """[., U]: a column for each expert, then for each virtual id, from stem + "E" and stem + "Z"."""
  names = [stem + letter for letter in "EZ" if stem + letter in params]
  return np.concatenate([np.asarray(params[name], np.float64) for name in names], axis=1)


def linear_logits(variables, inputs, cfg) -> np.ndarray:
  """Of routers with one matrix for experts and one for virtual ids."""
  gate_DU = columns(variables["params"], "gate_D")
  return np.array([x_D @ gate_DU for x_D in np.asarray(inputs.x_ND, np.float64)])


def token_by_token(score_NU, inputs, k: int, gates) -> np.ndarray:
  """Weights [N, U]: each real token has gates(n, chosen) for the active ones of its k best ids."""
  weight_NU = np.zeros(score_NU.shape)
  for n, score_U in enumerate(score_NU):
    chosen = best(score_U, k)[: inputs.knobs["k_active"]]
    if inputs.valid_N[n] and chosen:
      weight_NU[n, chosen] = gates(n, chosen)
  return weight_NU


def most_probable(logit_NU, inputs, k: int, renormalise: bool) -> np.ndarray:
  """Weights [N, U]: the probabilities of each token's k best ids, or these over their sum."""

  def gates(n, chosen):
    prob_K = softmax(logit_NU[n])[chosen]
    return prob_K / prob_K.sum() if renormalise else prob_K

  return token_by_token(logit_NU, inputs, k, gates)
