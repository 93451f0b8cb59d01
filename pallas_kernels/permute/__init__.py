"""From tokens to rows that are sorted by expert, and back with gates, by whichever is best.

Row m is one of token token_M[m], -1 for a row of nobody; row_NK has the rows of each token, M for
an unused choice. Each table follows from the other, and with both at hand neither direction nor any
gradient adds rows to tokens one by one: sums go over k, in that order. An implementation is a file
beside this one that has any of

  rows(x_ND, token_M) -> x_MD
  tokens(y_MD, gate_M, row_NK) -> y_ND                            gate_M None: plain sums
  d_tokens(dy_ND, y_MD, gate_M, token_M) -> (dy_MD, dgate_M)      the gradient of tokens
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import choose


def permute(x_ND, token_M, row_NK, *, implementation: str | None = None) -> jax.Array:
  """The rows of tokens; zeros for a row of nobody. Differentiable in x.

  >>> permute(jnp.array([[1.], [2.]]), jnp.array([1, 0, 1]), jnp.array([[1, 3], [0, 2]])).tolist()
  [[2.0], [1.0], [2.0]]
  """
  _check("permute", "x_ND", x_ND, len(row_NK), token_M, row_NK)
  return _permute(x_ND, token_M, row_NK, implementation)


def unpermute(y_MD, gate_M, token_M, row_NK, *, implementation: str | None = None) -> jax.Array:
  """y[n] = sum of gate * y[m] over the rows m of n, summed in float32. Differentiable in both.

  >>> y_MD, gate_M, token_M = jnp.array([[2.], [5.]]), jnp.array([.5, 1.]), jnp.array([1, 0])
  >>> unpermute(y_MD, gate_M, token_M, jnp.array([[1, 2], [0, 2]])).tolist()
  [[5.0], [1.0]]
  """
  _check("unpermute", "y_MD", y_MD, len(token_M), token_M, row_NK)
  if gate_M.shape != token_M.shape:
    raise ValueError(
      f"unpermute: {list(gate_M.shape)} gates for {len(token_M)} rows; give one for each row."
    )
  return _unpermute(y_MD, gate_M, token_M, row_NK, implementation)


def _run(part: str, wide, token_M, row_NK, implementation, *args):
  """A pass by the implementation of choice."""
  (N, K), shape = row_NK.shape, wide.shape
  sizes = {"N": N, "K": K, "M": len(token_M), "D": shape[1]}
  which = {"shape": sizes, "dtype": wide.dtype, "implementation": implementation}
  return choose.call("permute", part, *args, **which)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _permute(x_ND, token_M, row_NK, implementation):
  return _run("rows", x_ND, token_M, row_NK, implementation, x_ND, token_M)


def _permute_saving(x_ND, token_M, row_NK, implementation):
  return _permute(x_ND, token_M, row_NK, implementation), (token_M, row_NK)


def _permute_gradient(implementation, saved, dx_MD):
  token_M, row_NK = saved
  dx_ND = _run("tokens", dx_MD, token_M, row_NK, implementation, dx_MD, None, row_NK)
  return dx_ND, None, None


_permute.defvjp(_permute_saving, _permute_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _unpermute(y_MD, gate_M, token_M, row_NK, implementation):
  return _run("tokens", y_MD, token_M, row_NK, implementation, y_MD, gate_M, row_NK)


def _unpermute_saving(y_MD, gate_M, token_M, row_NK, implementation):
  y_ND = _unpermute(y_MD, gate_M, token_M, row_NK, implementation)
  return y_ND, (y_MD, gate_M, token_M, row_NK)


def _unpermute_gradient(implementation, saved, dy_ND):
  y_MD, gate_M, token_M, row_NK = saved
  args = (dy_ND, y_MD, gate_M, token_M)
  dy_MD, dgate_M = _run("d_tokens", dy_ND, token_M, row_NK, implementation, *args)
  return dy_MD.astype(y_MD.dtype), dgate_M.astype(gate_M.dtype), None, None


_unpermute.defvjp(_unpermute_saving, _unpermute_gradient)


def _check(name: str, what: str, wide, length: int, token_M, row_NK) -> None:
  """Refuses, in one sentence, tables that do not belong together."""
  if (wide.ndim, token_M.ndim, row_NK.ndim) != (2, 1, 2):
    raise ValueError(
      f"{name}: {what}, token_M, row_NK have {wide.ndim}, {token_M.ndim}, {row_NK.ndim} axes; "
      "they need 2, 1, 2."
    )
  if len(wide) != length:
    raise ValueError(
      f"{name}: {what} is {list(wide.shape)} beside tables of {len(token_M)} rows and"
      f" {len(row_NK)} tokens; give tables of these very rows and tokens."
    )
  if not all(jnp.issubdtype(table.dtype, jnp.integer) for table in (token_M, row_NK)):
    raise ValueError(
      f"{name}: tables of {token_M.dtype} and {row_NK.dtype} name no rows; give int32."
    )
