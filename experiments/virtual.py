"""Eight virtual devices in the process of a study: what one layer moves on them."""

import jax

N, D, F, E, K, FACTOR, DEVICES = 256, 32, 64, 8, 2, 1.25, 8
NUMBER = 4.0  # bytes of a float32


def devices() -> None:
  """Makes them; jax must not have been used for anything in this process."""
  jax.config.update("jax_num_cpu_devices", DEVICES)


def forward(dispatch: dict, mesh: dict) -> tuple[dict, dict]:
  """(bytes by kind of collective on one device, sizes) of the forward pass of one layer.

  Sums over devices of a count are left out. `sizes` has N, D, F, E and c, the slots that an expert
  has for the tokens of one device.
  """
  import jax.numpy as jnp  # noqa: PLC0415

  from moejax.core import config, plugin  # noqa: PLC0415
  from moejax.core.plan import RouterInputs, TokenPlan  # noqa: PLC0415
  from moejax.edits import capacity  # noqa: PLC0415
  from moejax.layers import experts  # noqa: PLC0415
  from moejax.perf import hlo  # noqa: PLC0415

  devices()
  cfg = config.section("dispatch", dispatch)
  expert_NK = (jnp.arange(N)[:, None] * 3 + jnp.arange(K)[None]) % E
  plan = TokenPlan(expert_NK, jnp.full((N, K), 1.0 / K), E)
  plan, _ = capacity.edit(plan, None, RouterInputs(groups=DEVICES), capacity.Config(FACTOR))
  shapes = {"wg_EDF": (E, D, F), "wu_EDF": (E, D, F), "wo_EFD": (E, F, D)}
  params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  run = lambda plan, x_ND, params: plugin.module(cfg).run(plan, x_ND, experts.gated(params), cfg)[0]
  auto = (jax.sharding.AxisType.Auto,) * len(mesh)
  with jax.set_mesh(jax.make_mesh(tuple(mesh.values()), tuple(mesh), auto)):
    text = jax.jit(run).lower(plan, jnp.zeros((N, D)), params).compile().as_text() or ""
  found = hlo.totals([one for one in hlo.collectives(text) if one.kind != "all-reduce"])
  return found, {"N": N, "D": D, "F": F, "E": E, "c": plan.capacity // DEVICES}
