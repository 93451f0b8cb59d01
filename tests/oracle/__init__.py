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


def linear_logits(variables, inputs) -> np.ndarray:
  """Of routers with one matrix for experts and one for virtual ids."""
  params, rows = variables["params"], []
  for x_D in np.asarray(inputs.x_ND, np.float64):
    columns = [params[name].T @ x_D for name in ("gate_DE", "gate_DZ") if name in params]
    rows.append(np.concatenate(columns))
  return np.array(rows)
