"""Routing from logits to sorted rows, on the machine a program is traced for."""

import jax
import jax.numpy as jnp

from pallas_kernels import choose
from pallas_kernels.routing import rule as rules
from pallas_kernels.routing.rule import Rule

__all__ = ["Rule", "route", "sort", "top_k"]


def top_k(score_NE, k: int, *, implementation: str | None = None) -> jax.Array:
  """The ids of the k highest scores, the lower id first among equals. They have no gradient.

  >>> top_k(jnp.array([[.1, .6, .3, .6]]), 3).tolist()
  [[1, 3, 2]]
  """
  _check("top_k", "score_NE", score_NE, 2, jnp.floating)
  (N, E), score_NE = score_NE.shape, jax.lax.stop_gradient(score_NE)
  rules.check(Rule(k), E)
  how = {"shape": {"N": N, "E": E, "K": k}, "implementation": implementation}
  return choose.call("routing", "top_k", score_NE, k, dtype=score_NE.dtype, **how)


def sort(expert_M, num_experts: int, *, implementation: str | None = None) -> tuple:
  """(order_M, place_M, size_E): rows by expert and in their order within one, where each went.

  Rows of expert `num_experts` are those of none: they come last and are counted nowhere.

  >>> [a.tolist() for a in sort(jnp.array([2, 0, 1, 0]), 2)]
  [[1, 3, 2, 0], [3, 0, 2, 1], [2, 1]]
  """
  _check("sort", "expert_M", expert_M, 1, jnp.integer)
  if num_experts < 1:
    raise ValueError(
      f"routing: sort by {num_experts} experts; give as many as there are, 1 or more."
    )
  how = {"shape": {"M": len(expert_M), "E": num_experts}, "implementation": implementation}
  return choose.call("routing", "sort", expert_M, num_experts, dtype=expert_M.dtype, **how)


def route(logit_NE, rule: Rule, bias_E=None, valid_N=None, *, implementation: str | None = None):
  """(expert_NK, gate_NK, place_NK, size_E): choices, gates, places by expert, rows each.

  The bias counts for the choice alone. Of a token that is not valid the ids are -1, the gates 0 and
  the places M = N * K. Rows of an expert are in the order of their tokens. Gates have a gradient
  for the logits, and nothing else has one.

  >>> expert_NK, gate_NK, place_NK, size_E = route(jnp.array([[1., 3.], [2., 0.]]), Rule(k=1))
  >>> expert_NK.tolist(), gate_NK.tolist(), place_NK.tolist(), size_E.tolist()
  ([[1], [0]], [[1.0], [1.0]], [[1], [0]], [1, 1])
  """
  _check("route", "logit_NE", logit_NE, 2, jnp.floating)
  N, E = logit_NE.shape
  rules.check(rule, E)
  bias_E = jnp.zeros(E, logit_NE.dtype) if bias_E is None else bias_E
  valid_N = jnp.ones(N, bool) if valid_N is None else valid_N
  for name, array, length in (("bias_E", bias_E, E), ("valid_N", valid_N, N)):
    if array.shape != (length,):
      raise ValueError(
        f"routing: {name} has the shape {array.shape} beside logits of {logit_NE.shape}; it must"
        f" be ({length},)."
      )
  return _route(logit_NE, jax.lax.stop_gradient(bias_E), valid_N, rule, implementation)


def _check(name: str, what: str, array, ndim: int, kind) -> None:
  """Refuses, in one sentence, what is no table of scores, or of ids."""
  if array.ndim != ndim or not jnp.issubdtype(array.dtype, kind):
    raise ValueError(
      f"routing: {name} got {what} as {array.dtype}{list(array.shape)}; give"
      f" {'an' if kind is jnp.integer else 'a'} {kind.__name__} array of {ndim} axes."
    )


def _run(logit_NE, bias_E, valid_N, rule, implementation) -> tuple:
  (N, E), args = logit_NE.shape, (logit_NE, bias_E, valid_N, rule)
  shape = {"N": N, "E": E, "K": rule.k}
  how = {"shape": shape, "dtype": logit_NE.dtype, "implementation": implementation}
  return tuple(choose.call("routing", "route", *args, **how))


def _forward(logit_NE, bias_E, valid_N, rule, implementation):
  out = _run(logit_NE, bias_E, valid_N, rule, implementation)
  return out, (logit_NE, valid_N, out[0])


def _backward(rule, _, saved, cotangents):
  logit_NE, valid_N, expert_NK = saved
  logit_NE = jnp.where(valid_N[:, None] > 0, logit_NE, 0)
  return rules.cotangent(logit_NE, expert_NK, cotangents[1], rule), None, None


_route = jax.custom_vjp(_run, nondiff_argnums=(3, 4))
_route.defvjp(_forward, _backward)
