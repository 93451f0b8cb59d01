"""Eight virtual devices in the process of a study: what one layer moves on them."""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

N, D, F, E, K, FACTOR, DEVICES = 256, 32, 64, 8, 2, 1.25, 8
NUMBER = 4.0  # bytes of a float32


def devices() -> None:
  """Makes them; jax must not have been used for anything in this process."""
  jax.config.update("jax_num_cpu_devices", DEVICES)


def forward(dispatch: dict, mesh: dict, experts: str | None = None) -> tuple[dict, dict]:
  """(bytes by kind of collective on one device, sizes) of the forward pass of one layer.

  Sums over devices of a count are left out. With `experts`, the text of a role, these lie by it,
  and tokens come and go as attention has them. `sizes` has N, D, F, E and c, the slots that an
  expert has for the tokens of one device.
  """
  import jax.numpy as jnp  # noqa: PLC0415

  from moejax.core import axes, config, plugin  # noqa: PLC0415
  from moejax.core.plan import RouterInputs, TokenPlan  # noqa: PLC0415
  from moejax.edits import capacity  # noqa: PLC0415
  from moejax.layers import experts as layers  # noqa: PLC0415
  from moejax.perf import hlo  # noqa: PLC0415

  devices()
  cfg = config.section("dispatch", dispatch)
  expert_NK = (jnp.arange(N)[:, None] * 3 + jnp.arange(K)[None]) % E
  plan = TokenPlan(expert_NK, jnp.full((N, K), 1.0 / K), E)
  plan, _ = capacity.edit(plan, None, RouterInputs(groups=DEVICES), capacity.Config(FACTOR))
  shapes = {"wg_EDF": (E, D, F), "wu_EDF": (E, D, F), "wo_EFD": (E, F, D)}
  params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  run = lambda plan, x_ND, params: plugin.module(cfg).run(plan, x_ND, layers.gated(params), cfg)[0]
  auto = (jax.sharding.AxisType.Auto,) * len(mesh)
  made = jax.make_mesh(tuple(mesh.values()), tuple(mesh), auto)
  at = P(tuple(name for name in axes.TOKENS if name in mesh)) if experts is not None else P()
  home = NamedSharding(made, at) if experts is not None else None
  roles = axes.Config(experts=experts or "")
  with axes.by_roles(roles), jax.set_mesh(made):
    program = jax.jit(run, in_shardings=(None, home, None), out_shardings=home)
    text = (
      program.lower(plan, jax.ShapeDtypeStruct((N, D), jnp.float32), params).compile().as_text()
      or ""
    )
  large = lambda one: one.kind != "all-reduce" or (experts is not None and one.dtype == "f32")
  found = hlo.totals([one for one in hlo.collectives(text) if large(one)])
  return found, {"N": N, "D": D, "F": F, "E": E, "c": plan.capacity // DEVICES}
