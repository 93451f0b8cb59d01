"""FLOPs of a traced function: 2 for each multiply-add of its matrix products and convolutions.
The product of two vectors is a sum, and sums do not count.

A scanned body counts as often as it runs (the compiler's own cost analysis counts it once), a
`cond` as its dearest branch, the inside of a shard_map once per device, a Pallas kernel once per
program of its grid. A while loop with a trip count that is only known at run time counts once, and
its FLOPs are given apart, so that a caller knows what the count leaves open.
"""

import math
import typing

import jax
from jax.extend import core


class Count(typing.NamedTuple):
  """What a function computes; `open_ended` are the FLOPs inside while loops, counted once."""

  flops: float
  open_ended: float = 0.0


def flops(fn, *args, **kwargs) -> Count:
  """The count of fn(*args), which is traced and never run; shapes will do as arguments.

  >>> x = jax.ShapeDtypeStruct((8, 4), "float32")
  >>> flops(lambda x: jax.lax.scan(lambda c, _: (c @ (x.T @ c), None), x, length=3)[0], x)
  Count(flops=1536.0, open_ended=0.0)
  """
  return Count(*_walk(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr))


def _walk(jaxpr) -> tuple[float, float]:
  """(FLOPs, those inside while loops) of all equations."""
  total, loose = 0.0, 0.0
  for eqn in jaxpr.eqns:
    own = COSTS.get(eqn.primitive.name)
    more = (own(eqn), 0.0) if own else _nested(eqn)
    total, loose = total + more[0], loose + more[1]
  return total, loose


def _nested(eqn) -> tuple[float, float]:
  """The counts of the functions inside an equation."""
  name, params = eqn.primitive.name, eqn.params
  inner = [_walk(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
  if not inner:
    return 0.0, 0.0
  if name == "cond":
    return max(inner)
  total, loose = (sum(column) for column in zip(*inner, strict=True))
  if name == "while":
    return total, total
  times = 1
  if name == "scan":
    times = params["length"]
  elif name == "shard_map":
    names = params.get("newly_manual_axes", params["mesh"].axis_names)
    times = math.prod(params["mesh"].shape[name] for name in names)
  elif name == "pallas_call":
    times = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
  return times * total, times * loose


def _jaxprs(value):
  """The traced functions in one parameter of an equation."""
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  if isinstance(value, list | tuple):
    return [jaxpr for item in value for jaxpr in _jaxprs(item)]
  return []


def _dot(eqn) -> float:
  (contract, _), _ = eqn.params["dimension_numbers"]
  x, y = (var.aval.shape for var in eqn.invars)
  if len(x) == len(y) == 1:
    return 0.0
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(x[i] for i in contract)


def _convolution(eqn) -> float:
  kernel = eqn.invars[1].aval.shape
  out_channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  per_output = math.prod(kernel) / out_channels  # already of one feature group
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output


def _ragged_dot(eqn) -> float:
  """Every row meets the matrix of its own group: the contracted size, once per output."""
  dims = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
  (contract, _), _ = dims
  x = eqn.invars[0].aval.shape
  rows = eqn.params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
  out = math.prod(eqn.outvars[0].aval.shape)
  groups = eqn.invars[2].aval.shape[-1]
  # where the ragged rows are summed over, the output has one part per group and each row is in one
  return 2.0 * out * math.prod(x[i] for i in contract) / (groups if rows[0] in contract else 1)


COSTS = {
  "dot_general": _dot,
  "conv_general_dilated": _convolution,
  "ragged_dot_general": _ragged_dot,
}
