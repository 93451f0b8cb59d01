"""Training as a list of stages: each has its steps, and may change the model before the first.

A stage may transform the model (grow/), train only a part of it, and change fields of the config.
The parameters, the moments of the optimiser and the average go along.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from moejax.core import config, flags, plugin, tree
from moejax.core.plugin import Wrong
from moejax.models import decoder
from moejax.optim import groups


@dataclasses.dataclass(frozen=True)
class Config:
  steps: int
  transform: typing.Any = None
  trainable: str | tuple | None = None  # axis letters or expressions for paths (optim/groups.py)
  changes: dict | None = None  # {"model.moe.router.k": 1, "train.lr_peak": 1e-4, ...}

  def __post_init__(self):
    if self.steps < 1:
      raise Wrong(f"stages: a stage of {self.steps} steps does nothing; give it at least 1.")
    for path in self.changes or {}:
      if path.split(".")[0] not in ("model", "train", "optim", "knobs"):
        raise Wrong(
          f"stages.changes: {path!r} cannot change during a run; model, train, optim and knobs can."
        )


def listed(cfg) -> tuple[Config, ...]:
  """The stages of a run: those of the config, or one of train.steps."""
  return cfg.stages or (Config(cfg.train.steps),)


def ends(cfg) -> list[int]:
  """The step after the last one of every stage.

  >>> import types
  >>> ends(types.SimpleNamespace(stages=(Config(3), Config(4))))
  [3, 7]
  """
  total, out = 0, []
  for stage in listed(cfg):
    total += stage.steps
    out.append(total)
  return out


def changed(cfg, model_cfg, changes: dict | None):
  """(run config, model config) with the changes of a stage.

  model.moe, model.mlp and model.attention mean every layer that has such a part.
  """
  if not changes:
    return cfg, model_cfg
  dumped = {**config.dump(cfg), "model": config.dump(model_cfg)}
  for path, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".name")):
    for target in _targets(dumped["model"], path):
      flags.put(dumped, target, value)
  cfg = config.resolve(dumped)
  return cfg, cfg.model


def enter(stage: Config, variables: dict, model_cfg, seed: int):
  """(variables, model config, follow) after a stage's transform; the trees are those of runs."""
  if stage.transform is None:
    return variables, model_cfg, lambda by_layer, fresh=None: by_layer
  by_layer = {name: tree.unstack(part, model_cfg) for name, part in variables.items()}
  module = plugin.module(stage.transform)
  key = jax.random.key(seed)
  by_layer, new_cfg, follow = module.apply(by_layer, model_cfg, {"key": key}, stage.transform)
  return {k: tree.stack(part, new_cfg) for k, part in by_layer.items()}, new_cfg, follow


def moved(state, variables, template, old_cfg, new_cfg, follow):
  """The whole train state after a transform, in the shapes and places of `template`."""
  params = variables.pop("params")

  def along(tree_like_params, new, fresh=None):
    """Moments or an average; frozen leaves that it lacks count as zeros."""
    whole = groups.fill(tree_like_params, state.params, jnp.zeros_like)
    return _part(tree.stack(follow(tree.unstack(whole, old_cfg), fresh), new_cfg), new)

  is_tree = lambda node: isinstance(node, dict)
  one = lambda old, new: along(old, new) if is_tree(old) else old
  opt_state = jax.tree.map(one, state.opt_state, template.opt_state, is_leaf=is_tree)
  average = None
  if template.ema is not None:  # an average that started from zero would lag for long
    average = along(state.ema, template.ema, fresh=tree.unstack(params, new_cfg))
  new = dataclasses.replace(
    state,
    params=_part(params, template.params),
    model_state=_part(variables, template.model_state),
    opt_state=opt_state,
    ema=average,
  )
  return jax.device_put(new, jax.tree.map(lambda leaf: leaf.sharding, template))


def title(stage: Config) -> str:
  """What a stage does, in a few words."""
  words = [f"transform {plugin.stem(stage.transform)}"] if stage.transform else []
  words += [f"trains {stage.trainable}"] if stage.trainable else []
  words += [f"{path}={value}" for path, value in (stage.changes or {}).items()]
  return ", ".join(words) or "the same"


def _part(whole, template):
  """The leaves of `whole` that `template` has, in its dtypes."""
  if isinstance(template, dict):
    for key in template:
      if key not in whole:
        raise Wrong(f"stages: the model has no {key!r} yet; a change of names needs a transform.")
    return {key: _part(whole[key], value) for key, value in template.items()}
  if whole.shape != template.shape:
    raise Wrong(
      f"stages: a parameter of shape {tuple(whole.shape)} cannot become {tuple(template.shape)};"
      " a change of shapes needs a transform."
    )
  return whole.astype(template.dtype)


def _targets(model: dict, path: str) -> list[str]:
  """The paths in the written-out config that one path of `changes` stands for."""
  head, _, rest = path.removeprefix("model.").partition(".")
  if not path.startswith("model.") or head not in decoder.COMMON:
    return [path]
  found = [
    f"model.layers[{i}].{key}.{rest}"
    for i, layer in enumerate(model["layers"])
    for key, part in layer.items()
    if isinstance(part, dict) and head in (key, part.get("name"))
  ]
  if not found:
    raise Wrong(f"stages.changes: {path!r} names a part that no layer of this stage has.")
  return found
