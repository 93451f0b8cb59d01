"""Eight virtual devices: meshes, and plans of random choices whose slots lie inside one device."""

import jax
import jax.numpy as jnp
import numpy as np
import plans
from jax.sharding import AxisType

from moejax.core import config, plugin
from moejax.core.plan import TokenPlan
from moejax.layers import experts
from moejax.perf import hlo


def mesh(**sizes):
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def token_plan(N, E, k, seed=5, factor=None, groups=8):
  """k different experts for each token; with a factor, also slots, and drops where they are few."""
  draw = np.random.default_rng(seed)
  expert_NK = jnp.asarray(np.argsort(draw.normal(size=(N, E)), axis=1)[:, :k], jnp.int32)
  plan = TokenPlan(expert_NK, jnp.asarray(draw.uniform(0.1, 1, (N, k)), jnp.float32), E)
  return plan if factor is None else plans.with_slots(plan, factor, groups=groups)


def program(name, mesh, plan, x_ND, params, grad=False, **how):
  """(compiled program, its arguments): y and sums, or the gradients of gates, x and weights."""
  cfg = config.section("dispatch", {"name": name, **how})

  def run(plan, x_ND, params):
    return plugin.module(cfg).run(plan, x_ND, experts.gated(params), cfg)

  def loss(plan, x_ND, params):
    return jnp.sum(jnp.sin(run(plan, x_ND, params)[0]))

  fn = jax.grad(loss, argnums=(0, 1, 2), allow_int=True) if grad else run
  args = (plan, x_ND, params)
  if mesh is None:
    return jax.jit(fn).lower(*args).compile(), args
  with jax.set_mesh(mesh):
    return jax.jit(fn).lower(*args).compile(), args


def outcome(*args, **how):
  """What the program gives."""
  compiled, given = program(*args, **how)
  return compiled(*given)


def moved(compiled):
  """Its collectives."""
  return hlo.collectives(compiled.as_text())
