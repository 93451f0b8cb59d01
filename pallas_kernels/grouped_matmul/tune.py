"""What there is to tune of the grouped matmul, and what it is compared with (see ../tune.py).

Yardsticks are one dense matmul of as many rows, ragged_dot, and where they are installed tokamax
(Mosaic, Triton) and PyTorch on GPUs; on TPUs megablox.
"""

import functools
import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import target, tune
from pallas_kernels.grouped_matmul import cases, mosaic_gpu, ragged, triton, xla
from pallas_kernels.tune import Job, Work, Yardstick

OP = "grouped_matmul"
PARTS = ("forward", "d_lhs", "d_rhs")


def named(tokens: int) -> dict:
  """name -> (case, loads): small ones, and the matmul up and the one down of every model.

  Small ones of one shape are one case, so that a setting is chosen for all of their loads.

  >>> named(16)["E32"][1], "E32_zipf" in named(16)
  (('random', 'even', 'zipf', 'one_hot', 'half'), False)
  """
  small: dict[str, tuple] = {}
  for name, case in cases.BENCH.items():
    first = next((n for n, (c, _) in small.items() if c[:4] == case[:4]), name)
    same, loads = small.get(first, (case, ()))
    small[first] = same, (*loads, case.load)
  models = {
    f"{model}{end}": (cases.of_model(model, tokens, bool(end)), ("even", "zipf"))
    for end in ("", ".down")
    for model in cases.MODELS
  }
  return small | models


def parts(every: bool) -> tuple[str, ...]:
  """The passes."""
  return PARTS


def job(case: cases.Case, part: str, loads, dtype, every: bool) -> Job:
  """A pass at a case."""
  shape = {letter: getattr(case, letter) for letter in "MDFE"}
  arrays = drawn(part, case, dtype)
  sizes = {load: jnp.asarray(cases.sizes(case._replace(load=load))) for load in loads}
  tried = functools.partial(settings, part=part, case=case, dtype=dtype)
  used = {load: int(size_E.sum()) for load, size_E in sizes.items()}
  dense = Yardstick(_dense(part), ratio={load: case.M / max(m, 1) for load, m in used.items()})
  return Job(
    OP,
    part,
    shape,
    str(jnp.dtype(dtype)),
    {load: (*arrays, size_E) for load, size_E in sizes.items()},
    tune.ways(OP, part, shape, dtype, tried if every else None),
    {"dense": dense, "ragged": Yardstick(getattr(ragged, part))} | _foreign(part),
    lambda *args: functools.partial(tune.wrong, expected=expected(part, *args)),
    {load: work(part, case, size_E, dtype) for load, size_E in sizes.items()},
    functools.partial(_torch, part),
  )


def drawn(part: str, case: cases.Case, dtype) -> tuple[jax.Array, jax.Array]:
  """The two arrays that a pass is given."""
  shapes = {"x": (case.M, case.D), "w": (case.E, case.D, case.F), "g": (case.M, case.F)}
  names = {"forward": "xw", "d_lhs": "gw", "d_rhs": "xg"}[part]
  return tune.draw(0, shapes[names[0]], dtype), tune.draw(1, shapes[names[1]], dtype)


def settings(name: str, part: str, case: cases.Case, dtype) -> list:
  """What there is to try, the implementation's own choice first; None if there is no other.

  >>> settings("ragged", "forward", cases.TEST["even"], "float32")
  [None]
  """
  mean, out = case.M // case.E, case.D if part == "d_lhs" else case.F
  if name == "xla":
    return xla.candidates(case.M, case.E)
  if name == "triton":
    return triton.candidates(part, mean, jnp.dtype(dtype).itemsize)
  return mosaic_gpu.candidates(part, mean, out) if name == "mosaic_gpu" else [None]


def work(part: str, case: cases.Case, size_E, dtype) -> Work:
  """Rows in use, and the matrices that must be touched."""
  used = int(size_E.sum())
  busy = case.E if part == "d_rhs" else int((size_E > 0).sum())
  moved = used * (case.D + case.F) + busy * case.D * case.F
  return Work(2.0 * used * case.D * case.F, jnp.dtype(dtype).itemsize * moved)


def absent() -> list[str]:
  """The packages of yardsticks that this machine lacks.

  >>> absent()  # those of GPUs are not missed elsewhere
  []
  """
  wanted = ("tokamax", "torch") if target.platform() == "gpu" else ()
  return [name for name in wanted if importlib.util.find_spec(name) is None]


def expected(part: str, a, b, size_E) -> list[tuple]:
  """(leaf, index, what a result has there): a few rows, or matrices, from dense matmuls."""
  last_E, size_E = np.cumsum(size_E), np.asarray(size_E)
  used = int(last_E[-1])
  matmul = functools.partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
  if part == "d_rhs":
    own = lambda e: slice(int(last_E[e] - size_E[e]), int(last_E[e]))
    some = {int(np.argmax(size_E)), int(np.argmin(size_E)), len(size_E) - 1}
    return [(0, e, matmul(a[own(e)].T, b[own(e)])) for e in some]
  found: list[tuple] = [(0, slice(used, None), np.zeros((1, 1)))]
  for m in {0, used // 3, used - 1, *(int(last) - 1 for last in last_E[:3])} - {-1}:
    if m < used:
      w = b[int(np.searchsorted(last_E, m, side="right"))]
      found.append((0, m, matmul(a[m], w.T if part == "d_lhs" else w)))
  return found


def _dense(part: str):
  """One matmul of as many FLOPs, for all rows."""
  if part == "forward":
    return lambda x_MD, w_EDF, size_E: x_MD @ w_EDF[0]
  if part == "d_lhs":
    return lambda g_MF, w_EDF, size_E: g_MF @ w_EDF[0].T
  return lambda x_MD, g_MF, size_E: x_MD.T @ g_MF


def _foreign(part: str) -> dict[str, Yardstick]:
  """What others have for this machine, if it is installed."""
  if target.platform() == "tpu":
    megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox")
    forward = lambda x, w, size_E: megablox.gmm(x, w, size_E, x.dtype)
    return {"megablox": Yardstick(_pass_of(forward, part))}
  if target.platform() != "gpu" or importlib.util.find_spec("tokamax") is None:
    return {}
  found = {}
  for how in ("mosaic", "triton"):
    forward = functools.partial(_tokamax, how)
    found[f"tokamax {how}"] = Yardstick(_pass_of(forward, part))
  return found


def _tokamax(implementation: str, x_MD, w_EDF, size_E):
  tokamax = importlib.import_module("tokamax")
  return tokamax.ragged_dot(x_MD, w_EDF, size_E, implementation=implementation)


def _pass_of(forward, part: str):
  """A pass of a function that has only gradients by jax.vjp."""
  if part == "forward":
    return forward
  if part == "d_lhs":

    def d_lhs(g_MF, w_EDF, size_E):
      like_MD = jnp.zeros((len(g_MF), w_EDF.shape[1]), g_MF.dtype)
      return jax.vjp(lambda x_MD: forward(x_MD, w_EDF, size_E), like_MD)[1](g_MF)[0]

    return d_lhs

  def d_rhs(x_MD, g_MF, size_E):
    like_EDF = jnp.zeros((len(size_E), x_MD.shape[1], g_MF.shape[1]), x_MD.dtype)
    return jax.vjp(lambda w_EDF: forward(x_MD, w_EDF, size_E), like_EDF)[1](g_MF)[0]

  return d_rhs


def _torch(part: str, a, b, size_E) -> dict:
  """PyTorch's grouped matmul on the same arrays, where both are on a GPU; forward only."""
  if target.platform() != "gpu" or part != "forward" or a.dtype != jnp.bfloat16:
    return {}
  try:
    torch = importlib.import_module("torch")
  except ImportError:
    return {}
  if not torch.cuda.is_available() or not hasattr(torch, "_grouped_mm"):
    return {}
  x, w = torch.from_dlpack(a), torch.from_dlpack(b)
  last = torch.from_dlpack(jnp.cumsum(size_E, dtype=jnp.int32))

  def run():
    torch._grouped_mm(x, w, offs=last)
    torch.cuda.synchronize()

  try:
    run()
  except RuntimeError:  # a shape or a GPU that it does not do
    return {}
  return {("torch", None): run}
