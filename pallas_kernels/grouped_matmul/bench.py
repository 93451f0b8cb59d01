"""The grouped matmul against ragged_dot, a dense matmul of the same FLOPs, and streamed weights."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import timing
from pallas_kernels.grouped_matmul import cases, ragged, xla

MEMORY = 2 << 30  # bytes of temporaries beyond which a program is described and not run


def measure(name: str, rounds: int = 9) -> dict:
  """One case of cases.BENCH: milliseconds, ratios to dense, temporary megabytes."""
  case, programs, temporary = cases.BENCH[name], {}, {}
  for which, function in (("ours", xla), ("ragged", ragged), ("dense", None)):
    for part, program in compiled(case, function).items():
      size = program[0].memory_analysis().temp_size_in_bytes
      temporary[which, part] = round(size / 2**20, 1)
      if size <= MEMORY:
        programs[which, part] = lambda program=program: program[0](*program[1])
  copy, weights = copied(case)
  programs["copy", "weights"] = lambda: copy(weights)
  ms = timing.in_turns(programs, rounds)
  rounded = lambda which, part: round(ms[which, part], 2) if (which, part) in ms else None
  row = {"case": name, "rows per expert": case.M // case.E}
  for which in ("dense", "ours", "ragged"):
    row |= {f"{which} fwd ms": rounded(which, "fwd"), f"{which} all ms": rounded(which, "all")}
  row |= {f"{which} temp MB": temporary[which, "all"] for which in ("ours", "ragged")}
  row["fwd of dense"] = round(ms["dense", "fwd"] / ms["ours", "fwd"], 2)
  row["all of dense"] = round(ms["dense", "all"] / ms["ours", "all"], 2)
  # the forward pass and the gradient of the rows read the weights, that of the weights writes as
  # much: three halves of a copy
  floor = max(ms["dense", "all"], 1.5 * ms["copy", "weights"])
  row["all of floor"] = round(floor / ms["ours", "all"], 2)
  return row


def copied(case: cases.Case):
  """(a program that copies its argument, the matrices of the experts that have rows)."""
  used = int((cases.sizes(case) > 0).sum())
  weights = jnp.ones((used, case.D, case.F), jnp.float32)
  return jax.jit(lambda w_EDF: 2 * w_EDF).lower(weights).compile(), weights


def compiled(case: cases.Case, implementation) -> dict:
  """{"fwd": (program, arguments), "all": forward and both gradients}; None is the dense matmul."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  x_MD, w_EDF, dy_MF = draw(case.M, case.D), draw(case.E, case.D, case.F), draw(case.M, case.F)
  size_E = jnp.asarray(cases.sizes(case))
  if implementation is None:
    forward = lambda x_MD, w_EDF, size_E: x_MD @ w_EDF[0]
    used = int(size_E.sum())
    x_MD, w_EDF, dy_MF = x_MD[:used], w_EDF[:1], dy_MF[:used]
  else:
    forward = implementation.grouped_matmul

  def both(x_MD, w_EDF, size_E, dy_MF):
    y_MF, back = jax.vjp(lambda x_MD, w_EDF: forward(x_MD, w_EDF, size_E), x_MD, w_EDF)
    return y_MF, back(dy_MF)

  make = lambda fn, *args: (jax.jit(fn).lower(*args).compile(), args)
  arguments = (x_MD, w_EDF, size_E)
  return {"fwd": make(forward, *arguments), "all": make(both, *arguments, dy_MF)}
