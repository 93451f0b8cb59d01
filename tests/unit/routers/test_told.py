"""Routers that are told something of a token besides itself: its modality, its condition."""

import types

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.balance import modality as rule
from moejax.core import config
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.routers import conditioned, modality, topk
from moejax.train import phase

N, D, E, C = 24, 6, 8, 3
INPUTS = RouterInputs(
  x_ND=drawn.normal(0, N, D), num_experts=E,
  modality_N=jnp.arange(N) % 2, cond_NC=drawn.normal(1, N, C),
)  # fmt: skip
GATE_DE = drawn.normal(2, D, E)


def logits(module, cfg, variables, inputs=INPUTS):
  return module.Router(cfg).apply(variables, inputs)[0]


PLAIN_NE = logits(topk, topk.Config(), {"params": {"gate_DE": GATE_DE}})


def test_equal_routers_and_no_experts_of_their_own_are_plain_top_k():
  cfg = modality.Config(own=(0.0, 0.0))
  variables = {"params": {"gate0_DE": GATE_DE, "gate1_DE": GATE_DE}}
  got_NE = logits(modality, cfg, variables)
  np.testing.assert_array_equal(got_NE, PLAIN_NE)
  plans = [moe.decide(PLAIN_NE, INPUTS, cfg) for cfg in (cfg, topk.Config())]
  np.testing.assert_array_equal(*[plan.weights_NE() for plan in plans])


@pytest.mark.parametrize("own", [(0.25, 0.25), (0.5, 0.5), (0.25, 0.5)])
def test_a_token_never_reaches_an_expert_of_another_modality(own):
  """Each modality alone: its counts at the others' experts are zero, and it is plain top-k."""
  cfg = modality.Config(k=2, own=own)
  variables = drawn.variables(modality.Router(cfg), INPUTS)
  plan = moe.decide(logits(modality, cfg, variables), INPUTS, cfg)
  weight_NE = np.asarray(plan.weights_NE())
  first, last = (round(share * E) for share in own)
  for m, theirs in enumerate([slice(0, E - last), slice(first, E)]):
    mine_NE = weight_NE[np.asarray(INPUTS.modality_N) == m]
    gate_DE = variables["params"][f"gate{m}_DE"][:, theirs]
    alone = INPUTS.replace(num_experts=gate_DE.shape[1])
    alone_NE = logits(topk, topk.Config(), {"params": {"gate_DE": gate_DE}}, alone)
    want_NE = moe.decide(alone_NE, alone, topk.Config()).weights_NE()
    np.testing.assert_allclose(mine_NE[:, theirs], want_NE[INPUTS.modality_N == m], atol=1e-6)
    np.testing.assert_array_equal(np.delete(mine_NE, np.r_[theirs], axis=1), 0)
    np.testing.assert_allclose(mine_NE.sum(1), 1, rtol=1e-6)  # copies of an FFN are that FFN


def test_the_balance_of_a_modality_is_over_the_experts_it_may_choose():
  """Every logit that is allowed is 0, and its experts are chosen in turn: 1 for each modality."""
  cfg = modality.Config(k=1)
  may_NE = modality.allowed(cfg, E)[np.asarray(INPUTS.modality_N)]
  logit_NE = jnp.where(may_NE, 0.0, -jnp.inf)
  turn_N = np.arange(N) // 2 % 6 + 2 * np.asarray(INPUTS.modality_N)  # 6 of 8 are allowed
  plan = moe.decide(logit_NE, INPUTS.replace(forced_NK=jnp.asarray(turn_N)[:, None]), cfg)

  @jax.jit
  @jax.value_and_grad
  def total(logit_NE):
    sums = rule.observe(plan, logit_NE, INPUTS, rule.Config())
    return rule.loss(jax.tree.map(lambda leaf: leaf[None], sums), {}, rule.Config())

  value, grad_NE = total(logit_NE)
  np.testing.assert_allclose(value, 2.0, rtol=1e-6)
  assert np.all(np.isfinite(grad_NE))


@pytest.mark.parametrize("mode", ["add", "modulate"])
def test_a_condition_without_weight_changes_nothing(mode):
  cfg = conditioned.Config(width=C, mode=mode)
  fresh = conditioned.Router(cfg).init(jax.random.key(0), INPUTS)["params"]
  told = {name: leaf for name, leaf in fresh.items() if name != "gate_DE"}
  np.testing.assert_array_equal(
    logits(conditioned, cfg, {"params": {**told, "gate_DE": GATE_DE}}), PLAIN_NE
  )
  drawn_NE = logits(conditioned, cfg, drawn.variables(conditioned.Router(cfg), INPUTS))
  still = INPUTS.replace(cond_NC=jnp.zeros((N, C)))
  still_NE = logits(conditioned, cfg, drawn.variables(conditioned.Router(cfg), INPUTS), still)
  assert np.abs(drawn_NE - still_NE).max() > 0.1


def test_added_is_a_linear_router_on_token_and_condition_together():
  cfg = conditioned.Config(width=C)
  params = drawn.variables(conditioned.Router(cfg), INPUTS)["params"]
  both_ND = jnp.concatenate([INPUTS.x_ND, INPUTS.cond_NC], axis=1)
  want_NE = both_ND @ jnp.concatenate([params["gate_DE"], params["cond_CE"]])
  got_NE = logits(conditioned, cfg, {"params": params})
  np.testing.assert_allclose(got_NE, want_NE, atol=1e-5)


def test_modulated_is_a_linear_router_on_the_scaled_and_shifted_token():
  cfg = conditioned.Config(width=C, mode="modulate")
  p = drawn.variables(conditioned.Router(cfg), INPUTS)["params"]
  cond_NC = INPUTS.cond_NC
  x_ND = INPUTS.x_ND * (1 + cond_NC @ p["scale_CD"]) + cond_NC @ p["shift_CD"]
  np.testing.assert_allclose(
    logits(conditioned, cfg, {"params": p}), x_ND @ p["gate_DE"], atol=1e-5
  )


def test_what_is_not_told_is_asked_for():
  silent = INPUTS.replace(modality_N=None, cond_NC=None)
  for module, cfg, match in [
    (modality, modality.Config(), "no modality; list the labels of each in data.modalities"),
    (conditioned, conditioned.Config(width=C), "no condition; set data.condition='modality'"),
  ]:
    variables = drawn.variables(module.Router(cfg), INPUTS)
    with pytest.raises(Wrong, match=match):
      logits(module, cfg, variables, silent)
  cfg = conditioned.Config(width=5)
  with pytest.raises(Wrong, match="3 numbers per token and model.moe.router.width is 5; set it to"):
    logits(conditioned, cfg, drawn.variables(conditioned.Router(cfg), silent))


WRONG = [
  (lambda: modality.Config(own=(0.7, 0.7)), r"own is \[0.7, 0.7\]; give one share"),
  (lambda: modality.Config(own=()), r"own is \[\]"),
  (lambda: modality.allowed(modality.Config(), 6), "of 6 experts are no whole numbers"),
  (lambda: logits(modality, modality.Config(k=5, own=(0.5, 0.5)), {}), "chooses k=5 .* only 4"),
  (lambda: conditioned.Config(width=0), "width is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "match"), WRONG, ids=lambda value: str(value)[:24])
def test_impossible_settings_are_refused(make, match):
  with pytest.raises(Wrong, match=match):
    make()


def test_a_run_gives_a_router_as_many_modalities_as_it_knows():
  layers = config.section("model", {"layers": [{}], "moe": {"router": {"name": "modality"}}})
  phase._check_modalities(layers, types.SimpleNamespace(modalities=2))
  with pytest.raises(Wrong, match="modality: it knows 2 modalities and data.modalities makes 5"):
    phase._check_modalities(layers, types.SimpleNamespace(modalities=5))
