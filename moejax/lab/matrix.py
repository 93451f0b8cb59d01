"""The conformance matrix: every router x edits x dispatch x dtype x number of devices.

A cell is one small MoE layer: its output and the gradients of its input, router and experts,
against dense dispatch in float32 on one device (einsum where the router mixes tokens, which dense
refuses). With bfloat16 the same rounded tokens and weights go through both, so that choices are the
same. Eight devices are data:2,expert:4. Router, edit and dispatch are compiled apart and shared by
all cells that have them: a dispatch is compiled once for all routers of the same K. What cannot be
is refused while it is traced. `python -m moejax matrix` writes the page docs/conformance.md
(lab/matrix_page.py).
"""

import functools
import itertools
import pathlib
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import axes, plugin
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.lab import drawn
from moejax.layers import experts, moe

N, T, D, E, F, VOCAB = 64, 8, 8, 8, 8, 9  # a group of tokens is a sequence
DTYPES = {"float32": 1e-4, "bfloat16": 0.1}  # allowed: part of the largest entry of each array
_calls = itertools.count()
DEVICES = {1: {}, 8: {"data": 2, "expert": 4}}


class Cell(typing.NamedTuple):
  """Errors by dtype and milliseconds of forward and backward, or why it cannot be."""

  router: str
  edits: tuple
  dispatch: str
  devices: int
  error: dict
  ms: float = 0.0
  refused: str = ""

  @property
  def green(self) -> bool:
    """Whether everything is as in the oracle, or refused; an error that is no number is not."""
    return bool(self.refused) or all(self.error[name] <= most for name, most in DTYPES.items())

  @property
  def at(self) -> tuple:
    """Which one it is."""
    return self[:4]


def combinations() -> list[tuple]:
  """The lists of edits: none, each alone, and each behind capacity, which gives slots.

  >>> combinations()[:2], ("capacity", "renormalise") in combinations()
  ([(), ('capacity',)], True)
  """
  names = plugin.names("edits")
  pairs = [("capacity", name) for name in names if name != "capacity"]
  return [(), *((name,) for name in names), *pairs]


@functools.cache
def setup(name: str):
  """(router Config, its variables, what it sees) of a router."""
  module, draw = plugin.load("routers", name), np.random.default_rng(0)
  cfg = module.Config()
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.bfloat16).astype(jnp.float32)
  carry = module.init_carry(cfg, N) if hasattr(module, "init_carry") else {}
  inputs = RouterInputs(
    x_ND=normal(N, D), valid_N=jnp.arange(N) % 7 > 0, seq_len=T, groups=N // T, num_experts=E,
    token_N=jnp.asarray(draw.integers(0, VOCAB, N), jnp.int32), vocab=VOCAB, carry=carry,
    modality_N=jnp.arange(N) % 2, cond_NC=normal(N, 2), key=jax.random.key(3),
  )  # fmt: skip
  if hasattr(module, "Shared"):
    unit = module.Shared(cfg)
    found = drawn.variables(lambda: unit.init(jax.random.key(0), inputs), draw)
    inputs = inputs.replace(shared={name: unit.apply(found, inputs)})
  start = lambda: module.Router(cfg).init(jax.random.key(0), inputs)
  return cfg, drawn.variables(start, draw), inputs


def weights() -> dict:
  """The leaves of the experts, as bfloat16 can hold them."""
  draw = np.random.default_rng(1)
  shapes = {"wg_EDF": (E, D, F), "wu_EDF": (E, D, F), "wo_EFD": (E, F, D)}
  draws = {name: 0.3 * draw.normal(size=shape) for name, shape in shapes.items()}
  return {k: jnp.asarray(v, jnp.bfloat16).astype(jnp.float32) for k, v in draws.items()}


@functools.partial(jax.jit, static_argnums=0)
def _route(cfg, variables, inputs):
  logit_NU, inputs = plugin.module(cfg).Router(cfg).apply(variables, inputs)
  return moe.decide(logit_NU, inputs, cfg), logit_NU, inputs


@functools.partial(jax.jit, static_argnums=0)
def _edit(cfg, plan, logit_NU, inputs):
  return plugin.module(cfg).edit(plan, logit_NU, inputs, cfg)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _dispatch(name, dtype, plan, x_ND, params):
  module = plugin.load("dispatch", name)
  low = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  return module.run(plan, x_ND.astype(dtype), experts.gated(low), module.Config())[0]


def outcome(name, edits, dispatch, dtype, x_ND, params):
  """(y, gradients of tokens, router and experts) of a function of y."""
  cfg, variables, inputs = setup(name)
  configs = [plugin.load("edits", edit).Config() for edit in edits]

  def loss(x_ND, router, params):
    given = {**variables, "params": router}
    plan, logit_NU, seen = _route(cfg, given, inputs.replace(x_ND=x_ND))
    for edit in configs:
      plan = _edit(edit, plan, logit_NU, seen)
    y_ND = _dispatch(dispatch, dtype, plan, x_ND, params).astype(jnp.float32)
    return jnp.sum(jnp.sin(y_ND)), y_ND

  grad_fn = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  (_, y_ND), grads = grad_fn(x_ND, variables.get("params", {}), params)
  return jax.device_get((y_ND, grads))


@functools.cache
def oracle(name, edits):
  """The outcome that a cell is compared with."""
  arguments = (setup(name)[2].x_ND, weights())
  try:
    return outcome(name, edits, "dense", "float32", *arguments)
  except Wrong:  # mixtures
    return outcome(name, edits, "einsum", "float32", *arguments)


def difference(got, want) -> float:
  """The largest one, as a part of the largest entry of its array."""
  parts = [
    np.abs(np.float64(a) - np.float64(b)).max(initial=0) / max(np.abs(b).max(initial=0), 1e-3)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  ]
  return float(np.max(parts))


def make_room(most: int = 50_000) -> bool:
  """Forgets what was compiled before there is no room for more.

  Every program maps some memory, and a process may have 65,530 maps on Linux.
  """
  maps = pathlib.Path("/proc/self/maps")
  full = maps.exists() and maps.read_bytes().count(b"\n") > most
  if full:
    jax.clear_caches()
  return full


def mesh(devices: int):
  """The mesh of a column; without axes one of one device, on which nothing is cut."""
  sizes = DEVICES[devices] or {"data": 1}
  kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), kinds, devices=jax.devices()[:devices])


def measure(name: str, edits: tuple, dispatch: str, devices: int) -> Cell:
  """One cell."""
  if next(_calls) % 16 == 0:
    make_room()
  error, ms, here = {}, 0.0, mesh(devices)
  try:
    want = oracle(name, edits)
    with jax.set_mesh(here):
      put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(here, spec))
      x_ND = put(setup(name)[2].x_ND, P(tuple(DEVICES[devices]) or None))
      params = jax.tree.map(put, weights(), axes.specs(weights(), here))
      for dtype in DTYPES:
        got = outcome(name, edits, dispatch, dtype, x_ND, params)
        error[dtype] = difference(got, want)
      start = time.perf_counter()
      outcome(name, edits, dispatch, "float32", x_ND, params)
      ms = 1e3 * (time.perf_counter() - start)
  except Wrong as reason:
    return Cell(name, edits, dispatch, devices, {}, refused=str(reason))
  return Cell(name, edits, dispatch, devices, error, ms)


def product(routers=None, dispatches=None, devices=None, edits=None) -> list[tuple]:
  """(router, edits, dispatch, devices) of every cell, or of the part that is named."""
  for given, family in ((routers, "routers"), (dispatches, "dispatch")):
    for name in given or ():
      plugin.load(family, name)
  devices = tuple(DEVICES) if devices is None else tuple(devices)
  for count in devices:
    if count not in DEVICES:
      raise Wrong(
        f"matrix: there is no column of {count} devices; use {', '.join(map(str, DEVICES))}."
      )
    if count > len(jax.devices()):
      raise Wrong(
        f"matrix: {count} devices are asked for and there are {len(jax.devices())}; set"
        f" JAX_NUM_CPU_DEVICES={count}, or ask for fewer."
      )
  return list(
    itertools.product(
      routers or plugin.names("routers"), combinations() if edits is None else edits,
      dispatches or plugin.names("dispatch"), devices,
    )
  )  # fmt: skip


def cells(*names, **named):
  """The product, or the part of it that is named, cell by cell."""
  for at in product(*names, **named):
    yield measure(*at)
