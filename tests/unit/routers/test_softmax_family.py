"""Cosine, noisy and grouped top-k: where each is another router, and what only it has."""

import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import routing
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.dispatch import dense
from moejax.layers import mlp, moe
from moejax.routers import cosine, grouped_topk, noisy_topk, sigmoid_topk, topk

N, D, E = 64, 8, 8
LOGIT_NE = 2 * drawn.normal(0, N, E)
X_ND = drawn.normal(1, N, D)
INPUTS = RouterInputs(x_ND=X_ND, num_experts=E)


def decide(cfg, logit_NE=LOGIT_NE, **fields):
  inputs = RouterInputs(num_experts=E, state={"bias_U": jnp.zeros(E)}, **fields)
  return moe.decide(logit_NE, inputs, cfg)


# -- cosine ----------------------------------------------------------------------------------------


def cosine_logits(change=lambda params: params, x_ND=X_ND, **fields):
  router = cosine.Router(cosine.Config(**fields))
  params = drawn.variables(router, INPUTS)["params"]
  params = {**params, "log_scale_H": jnp.full(1, math.log(2.0))}
  return router.apply({"params": change(params)}, INPUTS.replace(x_ND=x_ND))[0]


def test_lengths_of_tokens_and_embeddings_do_not_count():
  want_NE = cosine_logits()
  np.testing.assert_allclose(cosine_logits(x_ND=7 * X_ND), want_NE, atol=1e-5)
  longer = lambda params: {
    **params,
    "expert_RE": params["expert_RE"] * jnp.arange(1.0, E + 1)[None],
  }
  np.testing.assert_allclose(cosine_logits(longer), want_NE, atol=1e-5)
  assert np.all(np.abs(want_NE) <= 2 + 1e-5)


def test_an_embedding_on_the_token_has_the_highest_logit_there_is():
  """One over the temperature, which does not fall below its floor whatever is learnt."""
  onto = lambda params: {**params, "expert_RE": jnp.tile((X_ND[0] @ params["in_DR"])[:, None], E)}
  np.testing.assert_allclose(cosine_logits(onto)[0], 2, rtol=1e-5)
  sharp = lambda params: {**onto(params), "log_scale_H": jnp.full(1, 50.0)}
  np.testing.assert_allclose(cosine_logits(sharp, floor=0.1)[0], 10, rtol=1e-5)


def test_the_temperature_starts_where_the_config_says():
  router = cosine.Router(cosine.Config(temperature=0.25))
  start = jax.jit(router.init)(jax.random.key(0), INPUTS)["params"]["log_scale_H"]
  np.testing.assert_allclose(jnp.exp(start), [4.0], rtol=1e-6)
  with pytest.raises(Wrong, match="floor 0.5, temperature 0.1 do not go together"):
    cosine.Config(temperature=0.1, floor=0.5)


# -- noisy -----------------------------------------------------------------------------------------


def test_without_noise_it_is_top_k():
  pairs = {
    noisy_topk.Config(k=3): topk.Config(k=3, softmax="chosen"),
    noisy_topk.Config(k=3, noise="fixed", softmax="all"): topk.Config(k=3, renormalise=False),
  }
  for noisy, plain in pairs.items():
    assert_close(decide(noisy), decide(plain))


@pytest.mark.parametrize("noise, deviation", [("fixed", 3 / E), ("learned", math.log(2))])
def test_noise_has_the_deviation_that_is_handed_on(noise, deviation):
  """Learned noise starts at softplus(0)."""
  router = noisy_topk.Router(noisy_topk.Config(noise=noise, size=3.0))
  inputs = INPUTS.replace(x_ND=jnp.tile(X_ND, (40, 1)))
  params = drawn.variables(router, inputs)["params"]
  if noise == "learned":
    params = {**params, "noise_DE": jnp.zeros_like(params["noise_DE"])}
  run = jax.jit(lambda inputs: router.apply({"params": params}, inputs))
  quiet_NE, out = run(inputs)
  np.testing.assert_array_equal(quiet_NE, out.extras["clean_NU"])
  noisy_NE, out = run(inputs.replace(key=jax.random.key(3)))
  np.testing.assert_array_equal(quiet_NE, out.extras["clean_NU"])
  np.testing.assert_allclose(out.extras["noise_NU"], deviation, rtol=1e-6)
  z_NE = np.asarray(noisy_NE - quiet_NE) / deviation
  assert abs(z_NE.mean()) < 4 / math.sqrt(z_NE.size)
  assert abs(z_NE.var() - 1) < 4 * math.sqrt(2 / z_NE.size)


def test_no_noise_is_refused():
  with pytest.raises(Wrong, match="noise of size 0.0 is none"):
    noisy_topk.Config(noise="fixed", size=0.0)


# -- grouped ---------------------------------------------------------------------------------------


def imbalance(plan, groups):
  """Choices of the fullest group of experts less those of the emptiest, per token."""
  count_G = np.asarray(plan.count_U()).reshape(groups, -1).sum(1)
  return (count_G.max() - count_G.min()) / len(plan.expert_NK)


def test_one_group_is_top_k():
  assert_close(decide(grouped_topk.Config(k=3)), decide(topk.Config(k=3, renormalise=False)))


def test_groups_of_one_expert_are_the_dense_mixture():
  plan = decide(grouped_topk.Config(k=E, groups=E))
  np.testing.assert_allclose(plan.weights_NE(), jax.nn.softmax(LOGIT_NE), rtol=1e-6)


def test_groups_are_even_whatever_the_logits():
  skewed_NE = LOGIT_NE + 9 * jnp.arange(E)[None]
  for k, groups in ((4, 4), (4, 2), (6, 2)):
    plan = decide(grouped_topk.Config(k=k, groups=groups), skewed_NE)
    assert imbalance(plan, groups) == 0
  assert imbalance(decide(topk.Config(k=4), skewed_NE), 4) > 1


def test_a_limit_that_keeps_all_groups_is_not_a_choice_from_each():
  limited = decide(sigmoid_topk.Config(k=4, groups=4, groups_kept=4))
  assert imbalance(limited, 4) > 0


def test_free_choices_are_even_as_often_as_chance_has_it():
  """C(4, 1)^4 / C(16, 4) = 14.07 % of tokens; the published design has 0.379 %."""
  chance = lambda E, K, M: math.comb(E // M, K // M) ** M / math.comb(E, K)
  assert round(chance(64, 8, 8), 5) == 0.00379
  tokens, (e, k, m) = 20_000, (16, 4, 4)
  expert_NK = np.asarray(routing.top_k(drawn.normal(2, tokens, e), k)) // (e // m)
  even = np.mean([len(set(row)) == m for row in expert_NK.tolist()])
  p = chance(e, k, m)
  assert abs(even - p) < 3 * math.sqrt(p * (1 - p) / tokens)


def test_the_learned_scale_of_an_expert_multiplies_its_gates():
  router = grouped_topk.Router(grouped_topk.Config(k=4, groups=2))
  params = drawn.variables(router, INPUTS)["params"]
  weights = []
  for scale_E in (jnp.ones(E), jnp.arange(1.0, E + 1)):
    logit_NE, inputs = router.apply({"params": {**params, "scale_E": scale_E}}, INPUTS)
    weights.append(moe.decide(logit_NE, inputs, router.cfg).weights_NE())
  np.testing.assert_allclose(weights[1], weights[0] * jnp.arange(1.0, E + 1)[None], rtol=1e-6)


def test_groups_that_cannot_be_are_refused():
  with pytest.raises(Wrong, match="k=3 choices cannot be shared by 2 groups"):
    grouped_topk.Config(k=3, groups=2)
  with pytest.raises(Wrong, match="8 ids cannot form 3 groups that provide 1 choices"):
    decide(grouped_topk.Config(k=3, groups=3))


# -- fine-grained and shared experts ---------------------------------------------------------------


@pytest.mark.slow
def test_slices_of_an_expert_with_its_gate_are_the_expert():
  """Four experts of 8, two for each token, as eight of 4, four for each token."""
  width, x_ND = 8, X_ND[:12]
  whole = moe.Layer(moe.Config(topk.Config(k=2), dense.Config(), 4, width))
  fine = moe.Layer(moe.Config(topk.Config(k=4), dense.Config(), 8, width // 2))
  ctx = RouterInputs(seq_len=6)
  ids_NK = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(4), (12, 1)), axis=1))
  ids_NK, gate_NK = ids_NK[:, :2], jnp.abs(drawn.normal(3, 12, 2))
  variables = drawn.variables(whole, x_ND, ctx)
  params = variables["params"]
  forced = ctx.replace(forced_NK=ids_NK, forced_gate_NK=gate_NK)
  want_ND = whole.apply(variables, x_ND, forced)[0]

  in_slices = lambda w_EDF: w_EDF.reshape(4, D, 2, -1).swapaxes(1, 2).reshape(8, D, -1)
  own = {name: in_slices(params[name]) for name in ("wg_EDF", "wu_EDF")}
  own["wo_EFD"] = params["wo_EFD"].reshape(8, -1, D)
  variables = drawn.variables(fine, x_ND, ctx)
  variables["params"] |= own
  both_NK = jnp.concatenate([2 * ids_NK, 2 * ids_NK + 1], axis=1)
  forced = ctx.replace(forced_NK=both_NK, forced_gate_NK=jnp.tile(gate_NK, (1, 2)))
  np.testing.assert_allclose(fine.apply(variables, x_ND, forced)[0], want_ND, atol=1e-5)


def test_two_shared_experts_are_one_of_twice_the_width():
  wide = mlp.Layer(mlp.Config(8))
  params = drawn.variables(wide, X_ND, INPUTS)["params"]
  part = lambda at: {k: v[at] if k == "wo_FD" else v[:, at] for k, v in params.items()}
  half = lambda at: mlp.Layer(mlp.Config(4)).apply({"params": part(at)}, X_ND, INPUTS)[0]
  want_ND = wide.apply({"params": params}, X_ND, INPUTS)[0]
  np.testing.assert_allclose(half(slice(0, 4)) + half(slice(4, 8)), want_ND, atol=1e-5)
