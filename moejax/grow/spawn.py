"""Spawning: a dense FFN becomes E experts that start as copies of it, behind a fresh router.

Paper:  Nie et al. 2021 (EvoMoE), arXiv:2112.14397, phase 1.
Differs from the paper: how much of the weights it masks is not stated; here it is a field.

Right after spawning without variation every expert is the old FFN, so gates that sum to one leave
the model's function as it was; `noise`, `redrawn` and `masked` make the experts differ at once,
before the router has to.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import axes, plugin, rng, tree
from moejax.core.plugin import Wrong
from moejax.layers import mlp


@dataclasses.dataclass(frozen=True)
class Config:
  moe: object  # the section of the new layers; its `hidden` is that of the FFN
  only: tuple[int, ...] | None = None  # numbers of layers; None = every dense one
  noise: float = 0.0  # normal, times the standard deviation of each weight matrix
  redrawn: float = 0.0  # share of each expert's weights drawn anew, with the matrix's deviation
  masked: float = 0.0  # share of each expert's weights set to zero

  def __post_init__(self):
    if self.noise < 0 or not 0 <= self.masked < 1 or not 0 <= self.redrawn < 1:
      raise Wrong(
        f"spawn: noise is {self.noise}, redrawn is {self.redrawn} and masked is {self.masked};"
        " noise is not negative, and the others are shares from 0 to below 1."
      )


def apply(variables: dict, model_cfg, stats: dict, cfg: Config):
  """(variables, model config, follow), by layer; stats["key"] draws the routers and the noise."""
  new_cfg = _config(model_cfg, cfg)
  key = rng.stream(stats["key"], "spawn")
  shapes = jax.eval_shape(lambda key: _fresh(new_cfg, key), key)
  wanted = {name: _missing(variables.get(name, {}), part) for name, part in shapes.items()}
  fresh = jax.jit(lambda key: _like(wanted, _fresh(new_cfg, key)))(key)
  grown = {
    name: _grown(variables.get(name, {}), part, fresh[name]) for name, part in shapes.items()
  }
  old = variables["params"]
  grown["params"] = jax.tree_util.tree_map_with_path(
    lambda path, leaf: _varied(path, leaf, old, cfg, key), grown["params"]
  )

  def follow(tree_like_params, fresh=None):
    """Moments or an average, moved along; fresh parts are zero unless given."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), wanted["params"])
    return _grown(tree_like_params, shapes["params"], zeros if fresh is None else fresh)

  return grown, new_cfg, follow


def _config(model_cfg, cfg):
  """The model config with MoE layers in place of the dense ones."""
  chosen = mlp.dense(model_cfg.layers, cfg.only, "spawn")
  for i in chosen:
    hidden = model_cfg.layers[i].ffn.hidden
    if cfg.moe.hidden != hidden:
      raise Wrong(
        f"spawn: an expert copies the FFN of layer_{i:03d}, whose hidden is {hidden}, and"
        f" transform.moe.hidden is {cfg.moe.hidden}; set it to {hidden}."
      )
  layers = list(model_cfg.layers)
  for i in chosen:
    layers[i] = dataclasses.replace(layers[i], ffn=cfg.moe)
  return dataclasses.replace(model_cfg, layers=tuple(layers))


def _fresh(model_cfg, key):
  """The variables of a new model, by layer."""
  model = plugin.module(model_cfg).Model(model_cfg)
  made = model.init(key, jnp.zeros((1, 2), jnp.int32))
  return {name: tree.unstack(part, model_cfg) for name, part in made.items()}


def _source(name: str) -> str:
  """The leaf of a dense FFN that an expert leaf copies.

  >>> _source("wo_EFD")
  'wo_FD'
  """
  head, _, letters = name.rpartition("_")
  return f"{head}_{letters.replace('E', '', 1)}"


def _missing(old: dict, new: dict) -> dict:
  """The leaves of `new` that `old` neither has nor is the source of."""
  found = {}
  for key, value in new.items():
    if isinstance(value, dict):
      inside = _missing(old.get(key, {}), value)
      found |= {key: inside} if inside else {}
    elif key not in old and _source(key) not in old:
      found[key] = value
  return found


def _like(part: dict, whole: dict) -> dict:
  """The leaves of `whole` that `part` has."""
  return {k: _like(v, whole[k]) if isinstance(v, dict) else whole[k] for k, v in part.items()}


def _grown(old: dict, new: dict, fresh: dict) -> dict:
  """The leaves of `new`: kept from `old`, copied for every expert, or fresh."""
  out = {}
  for key, value in new.items():
    if isinstance(value, dict):
      out[key] = _grown(old.get(key, {}), value, fresh.get(key, {}))
    elif key in old:
      out[key] = old[key]
    elif _source(key) in old:
      out[key] = jnp.repeat(old[_source(key)][None], value.shape[0], axis=0)
    else:
      out[key] = fresh[key]
  return out


def _varied(path, leaf, old, cfg, key):
  """The leaf, with noise and a mask if it is a spawned expert's."""
  *where, name = (step.key for step in path)
  copied = "E" in axes.letters(name) and _source(name) in tree.at(old, tuple(where))
  if not copied or not (cfg.noise or cfg.redrawn or cfg.masked):
    return leaf
  key = rng.stream(key, "/".join((*where, name)))
  draw = lambda name: leaf.std() * jax.random.normal(rng.stream(key, name), leaf.shape)
  share = lambda name, size: jax.random.bernoulli(rng.stream(key, name), size, leaf.shape)
  varied = leaf + cfg.noise * draw("noise")
  varied = jnp.where(share("redraw", cfg.redrawn), draw("redrawn"), varied)
  return jnp.where(share("mask", cfg.masked), 0, varied).astype(leaf.dtype)
