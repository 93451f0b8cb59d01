"""Extraction: a dense FFN becomes experts, each made of the hidden units that one domain uses most.

Paper:  Cai et al. 2024 (Read-ME), arXiv:2410.19123.
Differs from the paper: the router of the new layers starts at random; lab/pregate.py teaches the
        one that decides for all layers what `scores` says, as in the paper.

The expert of a domain is a slice of the dense FFN: with a gate of 1 it computes what the FFN would
with the other units masked. Units that all domains use can be one shared expert, computed once.
The statistics come first: stats["activation"] of `apply` is what `statistics` returns, so that a
program calls both; a stage of a run has no statistics and is refused.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import plugin, rng, sums, tree
from moejax.core.plugin import Wrong
from moejax.layers import mlp, shared

TAP = "activation_YF"


@dataclasses.dataclass(frozen=True)
class Config:
  moe: object  # the section of the new layers: an expert per domain; its `hidden` is set here
  only: tuple[int, ...] | None = None  # numbers of layers; None = every dense one
  remain_rate: float = 0.5  # part of the hidden units that an expert keeps
  fused: bool = False  # units that every expert has become the shared expert

  def __post_init__(self):
    if not 0 < self.remain_rate <= 1:
      raise Wrong(f"extract: remain_rate is {self.remain_rate}; it is a part, above 0 and up to 1.")
    if getattr(self.moe, "shared", None):
      raise Wrong(
        "extract: the shared expert is made of the units that all domains use; set transform.fused"
        " and leave transform.moe.shared out."
      )


def statistics(model, variables, batches) -> dict:
  """layer_NNN -> how much every hidden unit had to say by domain, [Y, F], summed over tokens.

  A batch is (token_BT, ctx), with label_N and labels in ctx.
  """
  run = jax.jit(lambda token_BT, ctx: model.apply(variables, token_BT, ctx)[1])
  total = None
  for token_BT, ctx in batches:
    one = run(token_BT, ctx.replace(taps=(TAP,)))
    total = one if total is None else sums.add(total, one)
  by_layer = tree.unstack(jax.device_get(total or {}), model.cfg)
  found = {name: part.get("ffn", {}).get(f"taps/{TAP}") for name, part in by_layer.items()}
  return {name: size_YF for name, size_YF in found.items() if size_YF is not None}


def masks(size_YF, remain_rate: float) -> np.ndarray:
  """The units of every domain: the part of them with the largest sizes.

  >>> masks(np.array([[3., 1., 2., 0.], [0., 5., 6., 1.]]), 0.5).astype(int).tolist()
  [[1, 0, 1, 0], [0, 1, 1, 0]]
  """
  size_YF = np.asarray(size_YF)
  keep = max(1, round(remain_rate * size_YF.shape[1]))
  order_YF = np.argsort(-size_YF, axis=1, kind="stable")
  mask_YF = np.zeros(size_YF.shape, bool)
  np.put_along_axis(mask_YF, order_YF[:, :keep], True, axis=1)
  return mask_YF


def sliced(ffn: dict, mask_YF, fused: bool = False) -> dict:
  """The leaves of the experts, and of the shared one, from those of the dense FFN."""
  common_F = mask_YF.all(0) & fused
  units = lambda mask_F: np.flatnonzero(mask_F & ~common_F)
  unit_EF = np.stack([units(mask_F) for mask_F in mask_YF])
  cut = {
    "wg_EDF": jnp.moveaxis(ffn["wg_DF"][:, unit_EF], 1, 0),
    "wu_EDF": jnp.moveaxis(ffn["wu_DF"][:, unit_EF], 1, 0),
    "wo_EFD": ffn["wo_FD"][unit_EF],
  }
  if not common_F.any():
    return cut
  common = {name: ffn[name][:, common_F] for name in ("wg_DF", "wu_DF")}
  return {**cut, "shared": {"mlp": {**common, "wo_FD": ffn["wo_FD"][common_F]}}}


def scores(size_NF, mask_EF) -> jax.Array:
  """How well each expert fits a token: where the token's largest units are, 10 at most apart.

  The units are those the experts do not share; the largest fifth of as many as an expert has of
  its own counts five times, the next one four times, and so on.
  """
  own_EF = mask_EF & ~mask_EF.all(0)[None]
  count = int(own_EF[0].sum())
  rank_NF = jnp.argsort(jnp.argsort(-size_NF, axis=1), axis=1)
  marks = (count * fifth // 5 for fifth in range(1, 6))
  weight_NF = sum((rank_NF < mark).astype(jnp.float32) for mark in marks)
  fit_NE = weight_NF @ jnp.asarray(own_EF.T, jnp.float32) / (3 * max(count, 1))
  return 10 * (fit_NE - fit_NE.mean(1, keepdims=True))


def apply(variables: dict, model_cfg, stats: dict, cfg: Config):
  """(variables, model config, follow), by layer; stats["key"] draws the routers."""
  mask_of = _masks(model_cfg, stats, cfg)
  layers = list(model_cfg.layers)
  for i, mask_YF in mask_of.items():
    layers[i] = dataclasses.replace(layers[i], ffn=_section(i, mask_YF, cfg))
  new_cfg = dataclasses.replace(model_cfg, layers=tuple(layers))
  model = plugin.module(new_cfg).Model(new_cfg)
  made = jax.jit(model.init)(rng.stream(stats["key"], "extract"), jnp.zeros((1, 2), jnp.int32))
  fresh = {name: tree.unstack(part, new_cfg) for name, part in made.items()}

  def cut(old, start):
    """`start` with everything that `old` has, the experts as slices of it."""
    out = _over(start, old)
    for i, mask_YF in mask_of.items():
      name = f"layer_{i:03d}"
      ffn = _over(out[name]["ffn"], sliced(old[name]["ffn"], mask_YF, cfg.fused))
      out[name] = {**out[name], "ffn": ffn}
    return out

  def follow(tree_like_params, fresh_parts=None):
    """Moments or an average, moved along; fresh parts are zero unless given."""
    zeros = jax.tree.map(jnp.zeros_like, fresh["params"])
    return cut(tree_like_params, zeros if fresh_parts is None else fresh_parts)

  grown = {name: _over(part, variables.get(name, {})) for name, part in fresh.items()}
  return {**grown, "params": cut(variables["params"], fresh["params"])}, new_cfg, follow


def _masks(model_cfg, stats, cfg) -> dict:
  """Number of a layer -> the mask of each of its experts."""
  if "activation" not in stats:
    raise Wrong(
      "extract: it needs the activations of the dense model by domain; call statistics() of"
      " moejax/grow/extract.py and hand them to apply() as stats['activation']."
    )
  chosen = mlp.dense(model_cfg.layers, cfg.only, "extract")
  size_of = {i: np.asarray(stats["activation"][f"layer_{i:03d}"]) for i in chosen}
  for i, size_YF in size_of.items():
    if not size_YF.any(1).all():
      raise Wrong(
        f"extract: in layer_{i:03d} the domains {np.flatnonzero(~size_YF.any(1)).tolist()} moved no"
        " unit; give statistics() text of every domain."
      )
  return {i: masks(size_YF, cfg.remain_rate) for i, size_YF in size_of.items()}


def _section(i, mask_YF, cfg):
  """The config of a new layer."""
  if cfg.moe.num_experts != len(mask_YF):
    raise Wrong(
      f"extract: there are {len(mask_YF)} domains and transform.moe.num_experts is"
      f" {cfg.moe.num_experts}; every domain has one expert."
    )
  common = int(mask_YF.all(0).sum()) if cfg.fused else 0
  own = int(mask_YF[0].sum()) - common
  if not own:
    raise Wrong(
      f"extract: in layer_{i:03d} all experts have the same {common} units and none of their own;"
      " lower transform.remain_rate, or set transform.fused=False."
    )
  joined = shared.Config(hidden=common) if common else None
  return dataclasses.replace(cfg.moe, hidden=own, shared=joined)


def _over(base: dict, values: dict) -> dict:
  """`base` with the leaves that `values` has, too."""
  return {
    key: _over(leaf, values.get(key, {})) if isinstance(leaf, dict) else values.get(key, leaf)
    for key, leaf in base.items()
  }
