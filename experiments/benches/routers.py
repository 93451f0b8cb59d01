"""Routers against plain top-k at equal plans: the routing, a MoE layer around it, a training step.

Forward and backward in float32, all routers in turns, medians. Each has k choices where it has such
a field, its defaults otherwise, and the dispatch `sort` (`einsum` where it mixes tokens). In layer
and step the choices are forced, the same for all, so that no router is charged for a load that its
drawn weights make uneven; it chooses all the same, and weighs what is forced. Routers that make
whole plans (expert_choice, soft) are not forced. `step` is three such layers with attention, the
loss and AdamW. "of topk" is a time over that of top-k with as many choices. `router MFLOP` is the
forward pass of a router's own matmuls.

--routers=      some of them only; topk is always one
--what=route,layer,step
--tokens=2048   in sequences of 128, or in one where there are fewer
--width=64 --experts=8 --hidden=64 --k=2
--rounds=9      times each program is run
"""

OPTIONS = {
  "routers": "", "what": "route,layer,step", "tokens": 2048, "width": 64, "experts": 8,
  "hidden": 64, "k": 2, "rounds": 9,
}  # fmt: skip
BETTER = {f"{what} of topk": "lower" for what in ("route", "layer", "step")}
LAYERS, VOCAB = 3, 256  # of a step


def run(options: dict):
  """One row per router."""
  from moejax.core import plugin  # noqa: PLC0415  jax is imported after runtime.prepare()
  from pallas_kernels import timing  # noqa: PLC0415

  wanted = {}
  for field, known in (("routers", plugin.names("routers")), ("what", ["route", "layer", "step"])):
    wanted[field] = options[field].split(",") if options[field] else known
    for name in wanted[field]:
      if name not in known:
        raise plugin.Wrong(
          f"bench routers: no {field.rstrip('s')} {name!r}. {plugin.hint(name, known)}"
        )
  names, k = dict.fromkeys(("topk", *wanted["routers"])), options["k"]
  made = {(name, k): programs(name, k, options, wanted["what"]) for name in names}
  for name, _ in [*made]:  # what has other choices gets a top-k of its own
    count = round(made[name, k][1]["choices"])
    if ("topk", count) not in made:
      made["topk", count] = programs("topk", count, options, wanted["what"])
  flat = {(*of, what): f for of, (fs, _) in made.items() for what, f in fs.items()}
  ms = timing.in_turns(flat, options["rounds"])
  for name in names:
    about, row = made[name, k][1], {"case": name}
    plain = ("topk", round(about["choices"]))
    for what in wanted["what"]:
      row[f"{what} ms"] = round(ms[name, k, what], 3)
      row[f"{what} of topk"] = round(ms[name, k, what] / ms[*plain, what], 2)
    yield row | about


def programs(name: str, k: int, options: dict, wanted):
  """({what: a function without arguments}, {choices, router MFLOP}) of a router."""
  import functools  # noqa: PLC0415

  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from moejax.core import plugin  # noqa: PLC0415
  from moejax.core.plan import SoftPlan  # noqa: PLC0415
  from moejax.lab import balance, drawn  # noqa: PLC0415
  from moejax.layers import experts, moe  # noqa: PLC0415

  N, D, E, F = (options[key] for key in ("tokens", "width", "experts", "hidden"))
  cfg, draw = balance.router(name, k), np.random.default_rng(0)
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
  count = round(module.choices(cfg) if hasattr(module, "choices") else cfg.k)
  forced_NK = None if hasattr(module, "choose") else jnp.asarray(choices(draw, N, E, count))

  def plan(params, x_ND, forced_NK):
    given = inputs.replace(x_ND=x_ND, forced_NK=forced_NK)
    logit_NU, given = module.Router(cfg).apply({**variables, "params": params}, given)
    return moe.decide(logit_NU, given, cfg)

  given = (variables.get("params", {}), inputs.x_ND)
  mixes = isinstance(jax.eval_shape(plan, *given, None), SoftPlan)
  dispatch = plugin.load("dispatch", "einsum" if mixes else "sort")

  def route(params, x_ND):
    leaves = jax.tree.leaves(plan(params, x_ND, None))
    gates = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(gate)) for gate in gates), leaves

  def layer(params, x_ND, weights, forced_NK):
    how = (experts.gated(weights), dispatch.Config())
    return jnp.sum(jnp.sin(dispatch.run(plan(params, x_ND, forced_NK), x_ND, *how)[0]))

  make = {
    "route": lambda: functools.partial(jax.jit(jax.grad(route, (0, 1), has_aux=True)), *given),
    "layer": lambda: functools.partial(
      jax.jit(jax.grad(layer, (0, 1, 2))), *given, weights, forced_NK
    ),
    "step": lambda: step(cfg, count, dispatch, inputs, options),
  }
  own = module.flops(cfg, D, E) if hasattr(module, "flops") else 2.0 * D * E
  about = {"choices": count, "router MFLOP": round(1e-6 * N * own, 2)}
  return {what: make[what]() for what in wanted}, about


def step(cfg, count, dispatch, inputs, options):
  """A training step of a small decoder with a router, as a function that waits for its end."""
  import dataclasses  # noqa: PLC0415
  import types  # noqa: PLC0415

  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from moejax.core import config, plugin  # noqa: PLC0415
  from moejax.train import mesh as meshes  # noqa: PLC0415
  from moejax.train import phase  # noqa: PLC0415

  T, D, F = inputs.seq_len, options["width"], options["hidden"]
  B, draw = options["tokens"] // T, np.random.default_rng(0)
  router = {"name": plugin.stem(cfg), **dataclasses.asdict(cfg)}
  moe = {
    "num_experts": options["experts"], "hidden": F, "router": router,
    "dispatch": {"name": plugin.stem(dispatch.Config())},
  }  # fmt: skip
  section = {
    "model": {
      "vocab": VOCAB, "width": D, "layers": [{"ffn": "moe"}] * LAYERS, "moe": moe,
      "attention": {"heads": 2, "kv_heads": 1, "head_width": max(D // 2, 4)},
      "mlp": {"hidden": F}, "allow_noncausal": True,
    },
    "data": {"seq_len": T},
    "train": {"batch_size": B, "lr_peak": 1e-4, "schedule": {"name": "constant"}},
  }  # fmt: skip
  run, kinds = config.resolve(section), getattr(cfg, "modalities", 0)
  tokenizer = types.SimpleNamespace(bytes_V=np.ones(VOCAB, np.int32))
  corpus = types.SimpleNamespace(tokenizer=tokenizer, labels=("all",), modalities=kinds)
  mesh = meshes.make(run.mesh)
  with jax.set_mesh(mesh):
    at = phase.make(0, run, None, corpus, mesh)
    state = at.start(np.zeros((B, T), np.int32))
  batch = {
    "token_BT": draw.integers(0, VOCAB, (B, T + 1), np.int32),
    "segment_BT": np.ones((B, T + 1), np.int32),
    "label_BT": np.zeros((B, T + 1), np.int32),
  }
  if kinds:
    batch["modality_BT"] = draw.integers(0, kinds, (B, T + 1), np.int32)
  if hasattr(cfg, "width"):
    batch["cond_BTC"] = draw.normal(size=(B, T + 1, cfg.width)).astype(np.float32)
  if not hasattr(plugin.module(cfg), "choose"):
    ids_MK = choices(draw, B * T * LAYERS, options["experts"], count)
    batch["forced_BTLK"] = ids_MK.reshape(B, T, LAYERS, count)
  kept = {"state": state}

  def once():
    with jax.set_mesh(mesh):
      kept["state"], metrics = at.step(kept["state"], batch)
      return metrics["loss"], kept["state"]

  return once


def choices(draw, tokens: int, experts: int, k: int):
  """[tokens, k] different experts for each token."""
  import numpy as np  # noqa: PLC0415

  return np.argsort(draw.random((tokens, experts)), axis=1)[:, :k].astype(np.int32)


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
