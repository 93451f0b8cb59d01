"""Precision: which dtype each part of a run has.

Section:  `precision`. None means by platform: on a CPU everything is float32, elsewhere compute is
          bfloat16; the residual stream follows `compute`, the moments follow `params`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import axes, memory, plugin
from moejax.core.plugin import Wrong
from pallas_kernels import target

NAMES = ("float32", "bfloat16", "float16", "float64")


def dtype(name: str | None):
  """The dtype of a name.

  >>> dtype("bfloat16")
  dtype(bfloat16)
  """
  if name not in NAMES:
    raise Wrong(f"precision: {name!r} is no dtype of a run. {plugin.hint(name, NAMES)}")
  if jax.dtypes.canonicalize_dtype(name) != jnp.dtype(name):
    raise Wrong("precision: float64 is off in JAX; set JAX_ENABLE_X64=1, or use 'float32'.")
  return jnp.dtype(name)


@dataclasses.dataclass(frozen=True)
class Config:
  params: str = "float32"
  compute: str | None = None
  router: str = "float32"
  residual: str | None = None
  moments: str | None = None  # of the first moment; see optim/adamw.py
  accumulate: str = "float32"  # gradients summed over micro-batches

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None:
        dtype(value)
    if self.router != "float32":
      raise Wrong(
        f"precision: router is {self.router!r}, and routing flips between near-equal experts below"
        " float32; leave it 'float32'."
      )


def filled(cfg: Config) -> Config:
  """The same with every None decided.

  >>> filled(Config(compute="bfloat16")).residual
  'bfloat16'
  """
  compute = cfg.compute or ("float32" if target.platform() == "cpu" else "bfloat16")
  return dataclasses.replace(
    cfg, compute=compute, residual=cfg.residual or compute, moments=cfg.moments or cfg.params
  )


def cast(params, cfg: Config):
  """The params as the forward pass reads them: in the compute dtype, those of routers apart."""
  cfg = filled(cfg)

  def one(path, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or memory.is_away(leaf):
      return leaf  # packed storage is integers; what is away is cast where it is fetched
    routed = axes.role(tuple(key.key for key in path)) == "router"
    return leaf.astype(cfg.router if routed else cfg.compute)

  return jax.tree_util.tree_map_with_path(one, params)
