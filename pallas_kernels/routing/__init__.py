"""Choice and sort of a routed layer, on the machine a program is traced for."""

import jax

from pallas_kernels import target
from pallas_kernels.routing import library, xla


def top_k(score_NE: jax.Array, k: int) -> jax.Array:
  """The ids of the k highest scores, the lower id first among equals; nothing has a gradient."""
  return _here().top_k(score_NE, k)


def sort(expert_M: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(order_M, place_M, size_E): rows by expert and in their order within one, where each went.

  Rows of expert `num_experts` are those of none: they come last and are counted nowhere.
  """
  return _here().sort(expert_M, num_experts)


def _here():
  """Blocks of tokens, which `xla` walks over, are not what devices can share."""
  return xla if target.platform() == "cpu" and not target.is_cut() else library
