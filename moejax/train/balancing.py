"""Balance over a whole model: the losses of its layers, and the controllers after a step."""

import functools

import jax
import jax.numpy as jnp

from moejax.core import plugin, runs, sums, tree
from moejax.core.plugin import Wrong
from moejax.layers import moe


def loss(layer_sums, past, knobs, model_cfg):
  """The weighted balance losses of all MoE layers, one stack of equal layers at a time.

  A knob `<name>_weight` replaces the weight of a rule, so that a schedule of it never recompiles.
  `past` has the sums of the earlier micro-batches of the step, {} at first. A rule whose scope is
  "pooled" sees the layers of all stacks that have it as one stack.
  """
  weight = functools.partial(_weight, knobs)
  total, pooled = jnp.float32(0), {}
  for path, cfg in runs.find(model_cfg.layers, moe.Config):
    for name, rule in cfg.balance:
      if hasattr(plugin.module(rule), "loss"):
        now_L, past_L = (sums.seen_by(name, tree.at(s, path)) for s in (layer_sums, past))
        if getattr(rule, "scope", None) == "pooled":
          pooled.setdefault((name, rule), []).append(now_L)
        else:
          total += weight(name, rule) * plugin.module(rule).loss(now_L, past_L, rule)
  for (name, rule), stacks in pooled.items():
    total += weight(name, rule) * plugin.module(rule).loss(_joined(name, stacks), {}, rule)
  return total


def _weight(knobs, name, rule):
  value = knobs.get(f"{name}_weight", rule.weight)
  if jnp.ndim(value):
    raise Wrong(
      f"{name}: the knob {name}_weight has {len(value)} values; one number is the weight in all"
      " layers, so give one, or a schedule of one."
    )
  return value


def _joined(name, stacks):
  """The sums of several stacks as those of one: the layer's own and those of component `name`."""
  ids = sorted({len(seen["count_U"][0]) for seen in stacks})
  if len(ids) > 1:
    raise Wrong(
      f"{name}: scope 'pooled' needs layers with the same number of experts, and they have {ids};"
      " use the scope 'micro_batch'."
    )
  own = [{key: leaf for key, leaf in seen.items() if "/" not in key} for seen in stacks]
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *own)


def controllers(params, model_state, layer_sums, knobs, model_cfg):
  """A hook: every balance rule with an `update` moves the state of its layer's router, and its own.

  A rule sees both as one dict, and its own leaves (`init_state`) stand beside the router's, under
  its name. Knobs are numbers, or arrays with one entry per layer of the model.
  """
  state, L = model_state.get("router_state", {}), len(model_cfg.layers)
  knobs = {name: jnp.broadcast_to(value, (L,)) for name, value in knobs.items()}
  for path, cfg in runs.find(model_cfg.layers, moe.Config):
    mine = {name: value_L[_layers(path, model_cfg)] for name, value_L in knobs.items()}
    for name, rule in cfg.balance:
      if hasattr(plugin.module(rule), "update"):
        seen_L = sums.seen_by(name, tree.at(layer_sums, path))
        seen_L["expert_U"] = _experts(name, rule, cfg, seen_L["count_U"])
        old = (tree.at(params, (*path, "router")), state, seen_L, mine)
        state = _moved(path, name, rule, *old)
  return params, {**model_state, "router_state": state} if state else model_state


def _moved(path, name, rule, params_L, state, seen_L, knobs_L):
  """The tree of states after one rule's update of one stack."""
  update = functools.partial(plugin.module(rule).update, cfg=rule)
  at, beside = (*path, "router"), (*path, name)
  own_L = tree.at(state, beside)
  new_L = jax.vmap(update)(params_L, tree.at(state, at) | own_L, seen_L, knobs_L)
  for place, is_own in ((at, False), (beside, True)):
    part_L = {leaf: value for leaf, value in new_L.items() if (leaf in own_L) == is_own}
    state = tree.put(state, place, part_L) if part_L else state
  return state


def _experts(name, rule, cfg, count_LU):
  """1 for an expert, 0 for a virtual id."""
  if getattr(rule, "expert_share", None) is not None and not cfg.virtual:
    raise Wrong(
      f"{name}: expert_share {rule.expert_share} leaves the rest of the choices to virtual ids, and"
      " there are none; set model.moe.virtual, or leave expert_share out."
    )
  expert_U = jnp.arange(count_LU.shape[1]) < cfg.num_experts
  return jnp.broadcast_to(expert_U.astype(jnp.float32), count_LU.shape)


def _layers(path, model_cfg) -> slice:
  """Which layers of the model the stack under a path has."""
  run = next(run for run in runs.fold(model_cfg.layers) if run.name == path[0])
  first, last = (run.layer(repeat, int(path[1])) for repeat in (0, run.repeats - 1))
  return slice(first, last + 1, len(run.pattern))
