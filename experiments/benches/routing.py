"""Routing of one layer on this machine, against softmax + lax.top_k + argsort + bincount.

`ours` is what a layer with the router `topk` and the dispatch `sort` does from logits to sorted
rows: choices, renormalised gates, the order of the rows by expert, their places, rows per expert.
`plain` is the same as the four functions of jax.numpy and jax.lax; `all` adds the gradient of the
logits. Indices must be equal, gates near, or the benchmark stops. "of" is ours over plain, in
turns; "top-k of" and "sort of" are those parts alone.

--cases=N4096_E128_K8,...   some of the cases only
--rounds=15    times each program is run
--clock=wall   or cpu: the work of all cores, where others keep this machine busy
"""

OPTIONS = {"cases": "", "rounds": 15, "clock": "wall"}
BETTER = {"fwd of": "lower", "all of": "lower"}
SIZES = (
  (4096, 8, 2), (4096, 64, 8), (4096, 128, 8), (4096, 256, 8), (4096, 512, 10), (16384, 1024, 16),
)  # fmt: skip
CASES = {f"N{N}_E{E}_K{K}": (N, E, K) for N, E, K in SIZES}


def run(options: dict):
  """One row per case."""
  import time  # noqa: PLC0415

  from moejax.core import plugin  # noqa: PLC0415  jax is imported after runtime.prepare()

  clocks = {"wall": time.perf_counter, "cpu": time.process_time}
  names = options["cases"].split(",") if options["cases"] else list(CASES)
  for given, known, kind in ((names, CASES, "case"), ([options["clock"]], clocks, "clock")):
    for word in given:
      if word not in known:
        raise plugin.Wrong(f"bench routing: no {kind} {word!r}. {plugin.hint(word, known)}")
  for name in names:
    yield measure(name, options["rounds"], clocks[options["clock"]])


def measure(name: str, rounds: int, clock) -> dict:
  """One case, after a look at the results."""
  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from pallas_kernels import timing  # noqa: PLC0415

  N, E, K = CASES[name]
  draw = np.random.default_rng(0)
  logit_NE = jax.numpy.asarray(draw.normal(size=(N, E)), jax.numpy.float32)
  dgate_NK = jax.numpy.asarray(draw.normal(size=(N, K)), jax.numpy.float32)
  both = {"ours": ours(E, K), "plain": plain(E, K)}
  made = {(who, part): f for who, fs in both.items() for part, f in fs.items()}
  expert_M = made["plain", "top-k"](logit_NE).ravel()
  given = {"top-k": (logit_NE,), "sort": (expert_M,), "fwd": (logit_NE,)}
  given["all"] = (logit_NE, dgate_NK)
  results = [jax.tree.leaves(made[who, "all"](*given["all"])) for who in both]
  for got, want in zip(*results, strict=True):
    exact = np.issubdtype(got.dtype, np.integer)
    np.testing.assert_allclose(got, want, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
  programs = {key: lambda f=f, key=key: f(*given[key[1]]) for key, f in made.items()}
  ms = timing.in_turns(programs, rounds, clock=clock)
  row = {"case": name}
  for part in ("top-k", "sort", "fwd", "all"):
    row |= {f"{who} {part} ms": round(ms[who, part], 2) for who in both}
    row[f"{part} of"] = round(ms["ours", part] / ms["plain", part], 2)
  return row


def ours(E: int, K: int) -> dict:
  """The parts as the library has them."""
  from moejax.core import routing  # noqa: PLC0415
  from moejax.core.plan import RouterInputs, TokenPlan  # noqa: PLC0415
  from moejax.routers import topk  # noqa: PLC0415
  from pallas_kernels import routing as kernels  # noqa: PLC0415

  cfg, inputs = topk.Config(k=K), RouterInputs()

  def route(logit_NE):
    expert_NK = topk.select(logit_NE, inputs, cfg)
    plan = TokenPlan(expert_NK, topk.weigh(logit_NE, expert_NK, inputs, cfg), E)
    return plan.gate_NK, (expert_NK, *kernels.sort(plan.rows()[0], E))

  return parts(route, lambda s: routing.top_k(s, K), lambda expert_M: kernels.sort(expert_M, E))


def plain(E: int, K: int) -> dict:
  """The parts as anyone would write them."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  def sort(expert_M):
    order_M = jnp.argsort(expert_M, stable=True).astype(jnp.int32)
    row_M = jnp.arange(len(order_M), dtype=jnp.int32)
    place_M = jnp.zeros_like(order_M).at[order_M].set(row_M)
    return order_M, place_M, jnp.bincount(expert_M, length=E)

  def route(logit_NE):
    prob_NK, expert_NK = jax.lax.top_k(jax.nn.softmax(logit_NE), K)
    return prob_NK / prob_NK.sum(1, keepdims=True), (expert_NK, *sort(expert_NK.ravel()))

  return parts(route, lambda s: jax.lax.top_k(s, K)[1], sort)


def parts(route, top_k, sort) -> dict:
  """Compiled programs; `route` gives gates and, beside them, integers."""
  import jax  # noqa: PLC0415

  def both(logit_NE, dgate_NK):
    gate_NK, back, indices = jax.vjp(route, logit_NE, has_aux=True)
    return gate_NK, indices, back(dgate_NK)

  return {name: jax.jit(f) for name, f in
          {"top-k": top_k, "sort": sort, "fwd": route, "all": both}.items()}  # fmt: skip
