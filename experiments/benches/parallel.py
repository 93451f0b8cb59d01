"""Expert-parallel dispatches on eight virtual devices: time and bytes of a step.

A layer forward and backward on the mesh expert:8, with nodes of --inner devices. Times compare the
programs on this machine alone: virtual devices share its cores and have no links. Bytes are those
that all devices send in a step. For dispatches whose buffers have fixed sizes they are read from
the compiled program; for `ragged` and `dedup`, which a CPU only emulates, they are the rows that
the run counts (gates and ids, 8 bytes a choice, left out). "formula" is what systems papers predict
for bytes between nodes, from the plan alone; the benchmark stops where the two differ. "of flat" is
relative to all_to_all.

--cases=dedup,ring   some dispatches only
--inner=4            devices in a node
--tokens=2048        on all devices
--rounds=5           times each program is run
"""

OPTIONS = {"cases": "", "inner": 4, "tokens": 2048, "rounds": 5}
BETTER = {"between MB": "lower"}
W, D, F, E, K, FACTOR = 8, 64, 128, 16, 4, 1.25
CASES = {
  "all_to_all": {}, "hierarchical": {}, "ragged": {}, "dedup": {}, "all_gather": {}, "ring": {},
  "chunked": {"transport": {"name": "all_to_all"}, "forward": 2, "backward": 4},
}  # fmt: skip
NUMBER = 4.0  # bytes


def run(options: dict):
  """One row per dispatch."""
  import jax  # noqa: PLC0415  after runtime.prepare()

  from moejax.core import plugin  # noqa: PLC0415
  from pallas_kernels import timing  # noqa: PLC0415

  jax.config.update("jax_num_cpu_devices", W)
  names, inner = options["cases"].split(",") if options["cases"] else list(CASES), options["inner"]
  for name in names:
    if name not in CASES:
      raise plugin.Wrong(f"bench parallel: no dispatch {name!r}. {plugin.hint(name, CASES)}")
  if W % inner or options["tokens"] % W:
    raise plugin.Wrong(
      f"bench parallel: {W} devices cannot form nodes of {inner} for {options['tokens']} tokens;"
      " give divisors."
    )
  given = layer(options["tokens"])
  programs = {name: compiled(name, given, inner) for name in names}
  calls = {name: call for name, (call, _) in programs.items()}
  ms = timing.in_turns(calls, options["rounds"])
  rows = []
  for name, program in programs.items():
    inside, between = moved(name, program, given, inner)
    predicted = formula(name, given, inner)
    if predicted is not None and abs(between - predicted) > 0.5:
      raise plugin.Failed(f"bench parallel: {name} sends {between} bytes, not {predicted}.")
    row = {"case": name, "step ms": round(ms[name], 2), "inside MB": inside / 1e6}
    row |= {"between MB": between / 1e6, "formula MB": predicted and predicted / 1e6}
    rows.append(row)
  flat = next((row["between MB"] for row in rows if row["case"] == "all_to_all"), None)
  for row in rows:
    row["of flat"] = round(row["between MB"] / flat, 3) if flat else None
    yield {key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}


def layer(tokens: int):
  """(plan with slots, x_ND, parameters): even random choices, some dropped."""
  import jax.numpy as jnp  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from moejax.core.plan import RouterInputs, TokenPlan  # noqa: PLC0415
  from moejax.edits import capacity  # noqa: PLC0415

  draw = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  expert_NK = np.argsort(draw.normal(size=(tokens, E)), axis=1)[:, :K].astype(np.int32)
  plan = TokenPlan(jnp.asarray(expert_NK), jnp.full((tokens, K), 1.0 / K), E)
  plan, _ = capacity.edit(plan, None, RouterInputs(groups=W), capacity.Config(FACTOR))
  params = {"wg_EDF": normal(E, D, F), "wu_EDF": normal(E, D, F), "wo_EFD": normal(E, F, D)}
  return plan, normal(tokens, D), params


def compiled(name: str, given, inner: int):
  """The program of a step: (sums, gradients) of a plan, x and weights."""
  import jax  # noqa: PLC0415
  from jax.sharding import AxisType, NamedSharding  # noqa: PLC0415
  from jax.sharding import PartitionSpec as P  # noqa: PLC0415

  from moejax.core import axes, config, plugin  # noqa: PLC0415
  from moejax.layers import experts  # noqa: PLC0415

  how = CASES[name] | ({"inner": inner} if name in ("hierarchical", "dedup") else {})
  cfg = config.section("dispatch", {"name": name, **how})

  def loss(params, gate_NK, x_ND, plan):
    plan = plan.replace(gate_NK=gate_NK)
    y_ND, sums = plugin.module(cfg).run(plan, x_ND, experts.gated(params), cfg)
    return (y_ND**2).sum(), sums

  def step(plan, x_ND, params):
    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    grads, sums = grad(params, plan.gate_NK, x_ND, plan)
    return sums, grads

  mesh = jax.make_mesh((W,), ("expert",), (AxisType.Auto,))
  plan, x_ND, params = given
  with jax.set_mesh(mesh):
    at = lambda spec: NamedSharding(mesh, spec)
    tokens = jax.tree.map(lambda _: at(P("expert")), (plan, x_ND))
    weights = jax.tree.map(at, axes.specs(params, mesh), is_leaf=lambda s: isinstance(s, P))
    program = jax.jit(step, in_shardings=(*tokens, weights)).lower(*given).compile()
    placed = jax.device_put(given, (*tokens, weights))
  return lambda: program(*placed), program


def moved(name, program, given, inner) -> tuple[float, float]:
  """Bytes that all devices send in a step, inside nodes and between them."""
  from moejax.core import plugin  # noqa: PLC0415
  from moejax.perf import hlo  # noqa: PLC0415

  call, text = program[0], program[1].as_text()
  if name not in ("ragged", "dedup"):
    rows = [one for one in hlo.collectives(text) if one.kind != "all-reduce"]
    return hlo.sent(rows, lambda device: device // inner)
  sums, _ = call()
  row = D * NUMBER * 4  # there and back, in both passes
  if name == "ragged":
    away, across = crossings(given[0], inner, once=False)
    if float(sums["moved"]) != away:
      raise plugin.Failed(f"bench parallel: ragged moved {sums['moved']} rows, not {away}.")
    return (away - across) * row, across * row
  return float(sums["forwarded"]) * row, float(sums["crossed"]) * row


def crossings(plan, inner: int, once: bool) -> tuple[int, int]:
  """(rows that go to another device, rows that cross nodes), one for a token and node or each."""
  import numpy as np  # noqa: PLC0415

  expert_NK = np.asarray(plan.expert_NK)
  home_N1 = (np.arange(len(expert_NK)) // (len(expert_NK) // W))[:, None]
  owner_NK, used_NK = expert_NK // (E // W), expert_NK >= 0
  node_NK = np.where(used_NK, owner_NK // inner, -1)
  away = int((used_NK & (owner_NK != home_N1)).sum())
  if not once:
    return away, int((used_NK & (node_NK != home_N1 // inner)).sum())
  needed = [(node_NK == i).any(1) & (home_N1[:, 0] // inner != i) for i in range(W // inner)]
  return away, int(np.sum(needed))


def formula(name: str, given, inner: int) -> float | None:
  """Bytes between nodes of a step, from the plan alone; None where there is no formula here."""
  plan, nodes = given[0], W // inner
  buffer = E * plan.capacity / W * D * NUMBER  # of one device, one way
  if name in ("all_to_all", "hierarchical"):
    return 4 * W * buffer * (1 - 1 / nodes)
  if name in ("ragged", "dedup"):
    return crossings(plan, inner, once=name == "dedup")[1] * D * NUMBER * 4
  return None
