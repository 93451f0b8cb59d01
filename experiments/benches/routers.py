"""Routers against plain top-k at equal plans: the routing alone, and a small MoE layer around it.

Forward and backward in float32, all routers in turns, medians. Each has k choices where it has such
a field, its defaults otherwise, and the dispatch `sort` (`einsum` where it mixes tokens). "of topk"
is a time over that of top-k: what its plan costs as well as its mathematics, so a router that makes
more choices, or fewer, is told by `choices`. `router MFLOP` is the forward pass of its own matmuls.

--routers=      some of them only; topk is always one
--tokens=2048   in sequences of 128, or in one where there are fewer
--width=64 --experts=8 --hidden=64 --k=2
--rounds=9      times each program is run
"""

OPTIONS = {
  "routers": "", "tokens": 2048, "width": 64, "experts": 8, "hidden": 64, "k": 2, "rounds": 9,
}  # fmt: skip
BETTER = {"route of topk": "lower", "layer of topk": "lower"}


def run(options: dict):
  """One row per router."""
  from moejax.core import plugin  # noqa: PLC0415  jax is imported after runtime.prepare()
  from pallas_kernels import timing  # noqa: PLC0415

  known = plugin.names("routers")
  names = options["routers"].split(",") if options["routers"] else known
  for name in names:
    if name not in known:
      raise plugin.Wrong(f"bench routers: no router {name!r}. {plugin.hint(name, known)}")
  names = dict.fromkeys(("topk", *names))
  made = {name: programs(name, options) for name in names}
  flat = {(name, what): f for name, (fs, _) in made.items() for what, f in fs.items()}
  ms = timing.in_turns(flat, options["rounds"])
  for name, (_, about) in made.items():
    row = {"case": name}
    for what in ("route", "layer"):
      row[f"{what} ms"] = round(ms[name, what], 3)
      row[f"{what} of topk"] = round(ms[name, what] / ms["topk", what], 2)
    yield row | about


def programs(name: str, options: dict):
  """({route, layer}: functions without arguments, {choices, router MFLOP}) of a router."""
  import functools  # noqa: PLC0415

  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from moejax.core import plugin  # noqa: PLC0415
  from moejax.core.plan import SoftPlan  # noqa: PLC0415
  from moejax.lab import balance, drawn  # noqa: PLC0415
  from moejax.layers import experts, moe  # noqa: PLC0415

  N, D, E, F = (options[key] for key in ("tokens", "width", "experts", "hidden"))
  cfg, draw = balance.router(name, options["k"]), np.random.default_rng(0)
  module, inputs = plugin.module(cfg), seen(draw, N, D, E)
  if hasattr(module, "init_carry"):
    inputs = inputs.replace(carry=module.init_carry(cfg, N))
  if hasattr(module, "Shared"):
    unit = module.Shared(cfg)
    found = drawn.variables(lambda: unit.init(inputs.key, inputs), draw, 0.1)
    inputs = inputs.replace(shared={name: unit.apply(found, inputs)})
  variables = drawn.variables(lambda: module.Router(cfg).init(inputs.key, inputs), draw, 0.1)
  shapes = {"wg_EDF": (E, D, F), "wu_EDF": (E, D, F), "wo_EFD": (E, F, D)}
  weights = {k: jnp.asarray(0.1 * draw.normal(size=s), jnp.float32) for k, s in shapes.items()}

  def plan(params, x_ND):
    given = inputs.replace(x_ND=x_ND)
    logit_NU, given = module.Router(cfg).apply({**variables, "params": params}, given)
    return moe.decide(logit_NU, given, cfg)

  mixes = isinstance(jax.eval_shape(plan, variables.get("params", {}), inputs.x_ND), SoftPlan)
  dispatch = plugin.load("dispatch", "einsum" if mixes else "sort")

  def route(params, x_ND):
    leaves = jax.tree.leaves(plan(params, x_ND))
    gates = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(gate)) for gate in gates), leaves

  def layer(params, x_ND, weights):
    how = (experts.gated(weights), dispatch.Config())
    return jnp.sum(jnp.sin(dispatch.run(plan(params, x_ND), x_ND, *how)[0]))

  given = (variables.get("params", {}), inputs.x_ND)
  made = {
    "route": functools.partial(jax.jit(jax.grad(route, (0, 1), has_aux=True)), *given),
    "layer": functools.partial(jax.jit(jax.grad(layer, (0, 1, 2))), *given, weights),
  }
  own = module.flops(cfg, D, E) if hasattr(module, "flops") else 2.0 * D * E
  choices = module.choices(cfg) if hasattr(module, "choices") else cfg.k
  return made, {"choices": choices, "router MFLOP": round(1e-6 * N * own, 2)}


def seen(draw, N: int, D: int, E: int):
  """What every router may look at."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  from moejax.core.plan import RouterInputs  # noqa: PLC0415

  T = min(128, N)
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  return RouterInputs(
    x_ND=normal(N, D), valid_N=jnp.ones(N, bool), seq_len=T, groups=N // T, num_experts=E,
    token_N=jnp.asarray(draw.integers(0, 256, N), jnp.int32), vocab=256,
    modality_N=jnp.arange(N) % 2, cond_NC=normal(N, 2), key=jax.random.key(0),
  )  # fmt: skip
