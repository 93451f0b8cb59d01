"""Buffers that follow the parameters of their layer: a hook after every step."""

import functools

import jax

from moejax.core import plugin, runs, tree


def refresh(params, model_state, layer_sums, knobs, model_cfg):
  """A hook: layers with a `refresh(params, state, cfg) -> state` get their state anew."""
  state = model_state.get("router_state", {})
  for path, cfg in runs.find(model_cfg.layers, object):
    if hasattr(plugin.module(cfg), "refresh"):
      one = functools.partial(plugin.module(cfg).refresh, cfg=cfg)
      state = tree.put(state, path, jax.vmap(one)(tree.at(params, path), tree.at(state, path)))
  return params, {**model_state, "router_state": state} if state else model_state
