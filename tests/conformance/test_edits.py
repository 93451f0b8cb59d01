"""Every edit against its loop and what an edit may do to a plan; new files are found by name."""

import functools

import fields
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import plans
import pytest

from moejax.core import plugin
from moejax.core.plan import RouterInputs, TokenPlan
from moejax.core.plugin import Wrong

N, GROUPS = 12, 2
EDITS = plugin.names("edits")
CASES = [(name, i) for name in EDITS for i in range(len(oracle.load("edits", name).CASES))]


def inputs():
  return RouterInputs(groups=GROUPS, key=jax.random.key(4), num_experts=plans.E)


def config(case):
  name, i = case
  return oracle.load("edits", name).CASES[i]


@functools.cache
def before():
  """Skewed choices of four, some unused, some virtual."""
  draw = np.random.default_rng(0)
  logit_NE = draw.normal(size=(N, plans.E)) + [3.0, 2.0, 0.0, 0.0]
  expert_NK = np.argsort(-logit_NE)[:, :3]
  expert_NK[draw.uniform(size=expert_NK.shape) < 0.2] = -1
  expert_NK[::4, 2] = plans.E
  return plans.token_plan(expert_NK, ("identity",))


@functools.cache
def after(case):
  """(plan, sums, gradient of its weights to the gates that came in)."""
  cfg = config(case)

  def run(gate_NK):
    plan, sums = plugin.module(cfg).edit(before().replace(gate_NK=gate_NK), None, inputs(), cfg)
    return jnp.sum(jnp.sin(plan.weights_NE())), (plan, sums)

  grad_NK, (plan, sums) = jax.jit(jax.grad(run, has_aux=True))(before().gate_NK)
  return plan, sums, grad_NK


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_edited_plan_is_the_loop(case):
  plan, sums, _ = after(case)
  plain = jax.tree.map(np.asarray, before())
  want_NE, want = oracle.load("edits", case[0]).edit(plain, inputs(), config(case))
  np.testing.assert_allclose(plan.weights_NE(), want_NE, rtol=1e-5, atol=1e-6)
  assert {key: int(value) for key, value in sums.items()} == want


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_edit_takes_choices_away_and_adds_none(case):
  plan, _, grad_NK = after(case)
  kept_NK = np.asarray(plan.expert_NK) >= 0
  np.testing.assert_array_equal(plan.expert_NK[kept_NK], before().expert_NK[kept_NK])
  assert plan.virtual == before().virtual and plan.num_experts == plans.E
  real_NK = np.asarray(plan.real_NK())
  assert np.all(np.isfinite(grad_NK)) and np.all(np.asarray(grad_NK)[real_NK] != 0)
  if plan.slot_NK is not None:
    taken = [
      (int(e), int(s)) for e, s in zip(plan.expert_NK[real_NK], plan.slot_NK[real_NK], strict=True)
    ]
    assert len(set(taken)) == len(taken) and all(0 <= s < plan.capacity for _, s in taken)
    assert plan.groups == GROUPS


def probe(case):
  """Whether the first tokens of a group fare the same whatever the last ones want."""
  cfg, last_N1 = config(case), jnp.arange(N)[:, None] % (N // GROUPS) >= 4
  greedy = before().replace(
    expert_NK=jnp.where(last_N1, jnp.array([[0, 1, 2]]), before().expert_NK),
    gate_NK=jnp.where(last_N1, 9.0, before().gate_NK),
  )
  edited, _ = plugin.module(cfg).edit(greedy, None, inputs(), cfg)
  first_N = ~np.asarray(last_N1)[:, 0]
  return np.array_equal(edited.weights_NE()[first_N], after(case)[0].weights_NE()[first_N])


@pytest.mark.parametrize("name", EDITS)
def test_a_later_token_takes_nothing_away_if_the_docstring_says_causal(name):
  said = fields.need(plugin.load("edits", name), "Causal")
  for case in [case for case in CASES if case[0] == name]:
    order = getattr(config(case), "order", None)
    claims = [c for c in said.rstrip(".").split(". ") if order is None or order in c]
    assert claims, f"moejax/edits/{name}.py: its line Causal does not say what {order!r} is"
    if order != "random":  # a draw that happens to spare the first tokens proves nothing
      assert probe(case) == claims[0].endswith("yes"), (case, claims[0])


@pytest.mark.parametrize("name", EDITS)
def test_a_plan_by_experts_is_edited_or_refused(name):
  edit, cfg = plugin.load("edits", name), config((name, 0))
  try:
    plan, _ = edit.edit(plans.battery()["expert_choice"], None, inputs(), cfg)
    assert not isinstance(plan, TokenPlan)
  except Wrong as error:
    assert str(error).startswith(name) and "take the edit out" in str(error)
