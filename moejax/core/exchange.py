"""Rows from every device to every other, as many as there are: a ragged all-to-all.

On a CPU, which has none, all rows are gathered and each device keeps its own: the same numbers. The
gradient is the exchange back, on every machine.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moejax.core.cuts import Cut
from pallas_kernels import target


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rows(x_MD: jax.Array, sent_WW: jax.Array, R: int, cut: Cut) -> jax.Array:
  """[R, D]: what arrives here, by source and in its order; zeros behind the last row.

  sent_WW says how many rows go from each owner of `cut` to each, and is the same on all. Rows lie
  by destination in x_MD. What does not fit into R rows is lost: see that it does.
  """
  M, D = x_MD.shape
  me = cut.owner()
  first_WW = _before(sent_WW, 1)  # where the rows for a destination begin at their source
  before_WW = _before(sent_WW, 0)  # where the rows of a source begin at their destination
  if cut.expert and target.platform() != "cpu":
    sizes = (first_WW[me], sent_WW[me], before_WW[me], sent_WW[:, me])
    among = {"axis_name": cut.expert, "axis_index_groups": cut.groups()}
    return lax.ragged_all_to_all(x_MD, jnp.zeros((R, D), x_MD.dtype), *sizes, **among)
  x_WMD = cut.gathered(x_MD)
  row_R = jnp.arange(R)
  ends_W = jnp.cumsum(sent_WW[:, me])
  source_R = jnp.searchsorted(ends_W, row_R, side="right", method="compare_all")
  source_R = jnp.minimum(source_R, len(ends_W) - 1)
  at_R = source_R * M + first_WW[source_R, me] + row_R - before_WW[source_R, me]
  at_R = jnp.where(row_R < ends_W[-1], at_R, x_WMD.shape[0] * M)
  return x_WMD.reshape(-1, D).at[at_R].get(mode="fill", fill_value=0)


def _saving(x_MD, sent_WW, R, cut):
  return rows(x_MD, sent_WW, R, cut), (sent_WW, len(x_MD))


def _back(R, cut, saved, dy_RD):
  sent_WW, M = saved
  return rows(dy_RD, sent_WW.T, M, cut), None


rows.defvjp(_saving, _back)


def _before(sent_WW, axis: int):
  """Sums of what comes before.

  >>> _before(jnp.array([[1, 2], [3, 4]]), 1).tolist()
  [[0, 1], [0, 3]]
  """
  return jnp.cumsum(sent_WW, axis) - sent_WW
