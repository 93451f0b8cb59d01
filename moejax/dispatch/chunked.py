"""Another dispatch in chunks, so that a machine can send one while experts work on another.

Paper:  Hwang et al. 2022 (Tutel), arXiv:2206.03382, chunks of the slots; Pan et al. 2025 (FSMoE),
        arXiv:2501.10714, other numbers of chunks for the forward and the backward pass.
Plan:   that of its transport.
Cost:   that of its transport, in smaller messages. Of a transport of slots (one with `moves`) the
        backward pass keeps the rows that arrived and cuts them anew; experts compute their hidden
        layer once more. Another transport is cut by tokens, and where the numbers differ its
        forward pass is run again in the backward pass. Chunks of tokens change no bit of the
        result, chunks of slots neither; gradients of weights are added up chunk by chunk.
Study:  configs/studies/chunked.py

Nothing here orders the chunks: a compiler that overlaps communication finds the order, and
perf/pipeline.py says which numbers of chunks pay.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp

from moejax.core import config, cuts, plugin, slots
from moejax.core import sums as adding
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  transport: typing.Any = None  # another dispatch; None: all_to_all
  forward: int = 2  # chunks
  backward: int | None = None  # None: as many

  def __post_init__(self):
    if self.transport is None:
      usual = config.section("transport", {}, "dispatch.transport")
      object.__setattr__(self, "transport", usual)
    if not hasattr(plugin.module(self.transport), "local"):
      raise Wrong(
        f"chunked: {plugin.stem(self.transport)!r} sends nothing; set"
        " model.moe.dispatch.transport.name to a dispatch that does, as 'all_to_all'."
      )
    for name in ("forward", "backward"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise Wrong(f"chunked: {value} {name} chunks cannot be; use at least 1.")

  def both(self) -> tuple[int, int]:
    """Chunks of the forward and of the backward pass."""
    return self.forward, self.backward or self.forward


def run(plan, x_ND, experts, cfg):
  """The transport's own frame, with its work cut in parts."""
  transport = plugin.module(cfg.transport)
  by_slot = hasattr(transport, "moves")
  plan.slots() if by_slot else None
  plan = plan if by_slot else cuts.whole(plan)
  local = functools.partial(_by_slot if by_slot else _by_token, cfg=cfg)
  spread = getattr(transport, "SPREAD", False)
  return cuts.run(plugin.stem(cfg.transport), local, plan, x_ND, experts, spread)


def _by_slot(plan, x_nD, experts, cut, cfg):
  """Slots in equal parts; the last ones are filled up with empty slots."""
  transport, (E, D) = plugin.module(cfg.transport), (plan.num_experts, x_nD.shape[1])
  rows = slots.filled(plan, x_nD)
  x_EcD = rows.x_MD().reshape(E, -1, D)
  c = x_EcD.shape[1]
  more = -c % math.lcm(*cfg.both())
  x_EcD = jnp.pad(x_EcD, ((0, 0), (0, more), (0, 0)))
  if hasattr(transport, "gathered"):
    experts = transport.gathered(experts, cut, cfg.transport)
  how = (*transport.moves(cut, cfg.transport), experts._replace(params={}), cfg.both())
  y_EcD: typing.Any = _piped(_Static(how), x_EcD, experts.params)
  return rows.combine(y_EcD[:, :c].reshape(E * c, D)), {"moved": slots.moved(rows, E, cut)}


class _Static:
  """What does not change, by identity: functions have no other."""

  def __init__(self, value):
    self.value = value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _piped(how, x_EcD, params):
  return _forward(how, x_EcD, params)[0]


def _forward(how, x_EcD, params):
  there, back, experts, (chunks, _) = how.value
  experts = experts._replace(params=params)
  x_ieCD = [there(x_EiD) for x_EiD in jnp.split(x_EcD, chunks, 1)]
  y_iEcD = [back(slots.run(x_eCD, experts)) for x_eCD in x_ieCD]
  # what arrived lies by its source, and then by slot: kept in the order of all slots
  size = x_EcD.shape[1] // chunks
  e, D = len(x_ieCD[0]), x_EcD.shape[2]
  kept_eWcD = jnp.concatenate([x_eCD.reshape(e, -1, size, D) for x_eCD in x_ieCD], 2)
  return jnp.concatenate(y_iEcD, 1), (kept_eWcD, params)


def _backward(how, saved, dy_EcD):
  there, back, experts, (_, chunks) = how.value
  kept_eWcD, params = saved
  dx_iEcD, dparams = [], None
  e, _, _, D = kept_eWcD.shape
  parts = zip(jnp.split(dy_EcD, chunks, 1), jnp.split(kept_eWcD, chunks, 2), strict=True)
  for dy_EiD, x_eWiD in parts:
    through = lambda x_eCD, params: slots.run(x_eCD, experts._replace(params=params))
    _, pull = jax.vjp(through, x_eWiD.reshape(e, -1, D), params)
    dx_eCD, more = pull(there(dy_EiD))
    dx_iEcD.append(back(dx_eCD))
    dparams = more if dparams is None else jax.tree.map(jnp.add, dparams, more)
  return jnp.concatenate(dx_iEcD, 1), dparams


_piped.defvjp(_forward, _backward)


def _by_token(plan, x_nD, experts, cut, cfg):
  """Tokens in parts that differ by one at most; of a plan in which experts choose, its slots."""
  gates = "gate_NK" if isinstance(plan, TokenPlan) else "gate_EC"
  how = _Static((gates, experts._replace(params={}), cut, cfg))
  args = (getattr(plan, gates), x_nD, experts.params, plan.replace(**{gates: None}))
  forward, backward = cfg.both()
  return _apart(how, *args) if forward != backward else _parts(how, forward, *args)


def _parts(how, chunks, gate, x_nD, params, plan):
  gates, experts, cut, cfg = how.value
  plan, experts = plan.replace(**{gates: gate}), experts._replace(params=params)
  by_token = gates == "gate_NK"
  length = len(x_nD) if by_token else plan.token_EC.shape[1]
  ends = [length * i // chunks for i in range(chunks + 1)]
  out, total = [], None
  for first, last in zip(ends[:-1], ends[1:], strict=True):
    if first == last:
      continue
    if by_token:
      part = jax.tree.map(lambda a_NK, f=first, t=last: a_NK[f:t], plan)
      x = x_nD[first:last]
    else:
      part = jax.tree.map(lambda a_EC, f=first, t=last: a_EC[:, f:t], plan)
      x = x_nD
    y, sums = plugin.module(cfg.transport).local(part, x, experts, cut, cfg.transport)
    out.append(y)
    total = sums if total is None else adding.add(total, sums)
  return jnp.concatenate(out) if by_token else sum(out), total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apart(how, gate, x_nD, params, plan):
  return _parts(how, how.value[3].both()[0], gate, x_nD, params, plan)


def _apart_forward(how, *args):
  return _apart(how, *args), args


def _apart_backward(how, args, cotangents):
  chunks, plan = how.value[3].both()[1], args[3]
  again = lambda gate, x_nD, params: _parts(how, chunks, gate, x_nD, params, plan)[0]
  _, pull = jax.vjp(again, *args[:3])
  return *pull(cotangents[0]), None


_apart.defvjp(_apart_forward, _apart_backward)
