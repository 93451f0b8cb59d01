"""Routers by assignment and routers that are fixed: what each promises beyond the battery."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle.dispatch
import pytest
from close import assert_close
from scipy.optimize import linear_sum_assignment

from configs.studies.baselines import STAGES
from moejax.balance import distill
from moejax.core import config, routing
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.dispatch import einsum, sort
from moejax.layers import mlp, moe
from moejax.models import decoder
from moejax.optim import adamw
from moejax.routers import base, hash, sinkhorn, soft, stable
from moejax.train import stages

N, D, E, VOCAB = 24, 8, 4, 50
KEY = jax.random.key(0)
LOGIT_NE = 2 * drawn.normal(0, N, E)
TOKEN_N = jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, N), jnp.int32)
ALL_N = jnp.ones(N, bool)
assign = jax.jit(base.assign, static_argnums=3)


def hashed(token_N, cfg, ids=E, vocab=VOCAB):
  """(chosen ids, gates) of token ids."""
  inputs = RouterInputs(token_N=token_N, num_experts=ids, vocab=vocab)
  logits = jax.jit(lambda inputs: hash.Router(cfg).apply({}, inputs))
  plan = moe.decide(*logits(inputs), cfg)
  return np.asarray(plan.expert_NK), plan.gate_NK


def test_hash_with_one_expert_is_dense():
  x_ND, ctx = drawn.normal(2, N, D), RouterInputs(seq_len=N, token_N=TOKEN_N)
  layer = moe.Layer(moe.Config(hash.Config(), sort.Config(), num_experts=1, hidden=6))
  variables = drawn.variables(layer, x_ND, ctx)
  assert "router" not in variables["params"]
  one = {name.replace("E", ""): leaf[0] for name, leaf in variables["params"].items()}
  dense = mlp.Layer(mlp.Config(6))
  got_ND, want_ND = jax.jit(
    lambda both: (layer.apply(both[0], x_ND, ctx)[0], dense.apply(both[1], x_ND, ctx)[0])
  )((variables, {"params": one}))
  assert_close(got_ND, want_ND)


def test_a_hash_is_of_the_token_alone_even_over_tokens_and_another_for_another_seed():
  token_N = jnp.arange(4000, dtype=jnp.int32)
  expert_NK, gate_NK = hashed(token_N, hash.Config(k=2))
  assert np.all(expert_NK[:, 0] != expert_NK[:, 1]) and np.all(gate_NK == 0.5)
  share_KE = [np.bincount(column, minlength=E) / 4000 for column in expert_NK.T]
  np.testing.assert_allclose(share_KE, 1 / E, atol=0.03)
  np.testing.assert_array_equal(hashed(token_N[::-1], hash.Config(k=2))[0], expert_NK[::-1])
  other_NK, gate_NK = hashed(token_N, hash.Config(k=2, seed=1, renormalise=False))
  assert 0.2 < np.mean(other_NK[:, 0] == expert_NK[:, 0]) < 0.3 and np.all(gate_NK == 1)


def test_a_table_of_counts_evens_out_how_often_tokens_occur(tmp_path):
  count_V = (1e5 / np.arange(1, VOCAB + 1)).astype(int)[::-1]  # Zipf's law, the last id most often
  path = str(tmp_path / "counts.npy")
  np.save(path, count_V)
  every_V = jnp.arange(VOCAB, dtype=jnp.int32)
  loads = {}
  for counts in (None, path):
    expert_VK, gate_VK = hashed(every_V, hash.Config(k=2, counts=counts))
    assert np.all(expert_VK[:, 0] != expert_VK[:, 1]) and np.all(gate_VK == 0.5)
    loads[counts] = sum(np.bincount(e_V, count_V, E) for e_V in expert_VK.T) / count_V.sum()
  np.testing.assert_allclose(loads[path], 2 / E, atol=0.02)
  assert np.abs(loads[None] - 2 / E).max() > 0.1
  with pytest.raises(Wrong, match=r"shape \(50,\).*for each of 51 token ids"):
    hashed(every_V, hash.Config(counts=path), vocab=51)
  with pytest.raises(Wrong, match="cannot be read"):
    hashed(every_V, hash.Config(counts=str(tmp_path / "none.npy")))


@pytest.mark.parametrize("router", [hash.Router(hash.Config()), stable.Shared(stable.Config())])
def test_without_token_ids_there_is_no_fixed_routing(router):
  with pytest.raises(Wrong, match="hands on no token ids"):
    router.init(KEY, RouterInputs(x_ND=drawn.normal(0, N, D), num_experts=E))


def total(score_nU, expert_n):
  return sum(score_nU[i, e] for i, e in enumerate(expert_n) if e >= 0)


@pytest.mark.parametrize("valid", [24, 17, 4, 1, 0])
def test_base_finds_the_best_balanced_assignment(valid):
  """Whole numbers and an eps below 1 / n: the sum is the very best one, with as many each."""
  valid_n, places = jnp.arange(N) < valid, -(-valid // E)
  for seed in range(5):
    score_nU = np.random.default_rng(seed).integers(-9, 10, (N, E)) + np.array([[6, 3, 0, 0]])
    expert_n = np.asarray(assign(jnp.asarray(score_nU, jnp.float32), valid_n, 0.9 / N, 10**6))
    assert np.all((expert_n >= 0) == valid_n)
    count_U = np.bincount(expert_n[:valid], minlength=E)
    assert count_U.max() <= places and (valid % E or np.all(count_U == places))
    columns = np.repeat(score_nU[:valid], places, axis=1)
    best = columns[linear_sum_assignment(-columns)].sum() if valid else 0
    assert total(score_nU, expert_n) == best


@pytest.mark.parametrize("n", [1, 7, base.FEW + 1])
def test_base_ranks_few_tokens_as_it_ranks_many(n):
  draw = np.random.default_rng(n)
  expert_n, bid_n = jnp.asarray(draw.integers(0, 4, n)), jnp.asarray(draw.integers(1, 5, n) / 2)
  want_n = routing.rank(expert_n, -bid_n, 3)
  np.testing.assert_array_equal(base._rank(expert_n, bid_n), want_n)


def test_an_auction_is_the_same_by_pairs_and_by_sorting(monkeypatch):
  score_nU = jnp.asarray(np.random.default_rng(3).integers(-3, 4, (N, E)), jnp.float32)
  run = lambda: jax.jit(lambda score_nU: base.assign(score_nU, ALL_N, 0.05, 100))(score_nU)
  got_n = run()
  monkeypatch.setattr(base, "FEW", 0)
  np.testing.assert_array_equal(got_n, run())


def test_base_is_balanced_however_early_its_auction_stops():
  alike_nU = jnp.tile(jnp.array([[3.0, 2.0, 1.0, 0.0]]), (N, 1))
  for score_nU in (alike_nU, jnp.zeros((N, E)), LOGIT_NE):
    expert_n = assign(score_nU, ALL_N, 1e-3, 1)
    np.testing.assert_array_equal(np.bincount(expert_n, minlength=E), N // E)


def plan_of(cfg, logit_NE=LOGIT_NE, **fields):
  decide = jax.jit(moe.decide, static_argnums=2)
  return decide(logit_NE, RouterInputs(num_experts=E, **fields), cfg)


def test_base_balances_every_group_in_training_and_takes_the_best_in_evaluation():
  trained = plan_of(base.Config(), groups=3, key=KEY)
  for group_n in np.split(np.asarray(trained.expert_NK[:, 0]), 3):
    np.testing.assert_array_equal(np.bincount(group_n, minlength=E), N // 3 // E)
  greedy = plan_of(base.Config(), groups=3)
  np.testing.assert_array_equal(greedy.expert_NK[:, 0], LOGIT_NE.argmax(1))
  for plan in (trained, greedy):
    score_NK = jnp.take_along_axis(LOGIT_NE, plan.expert_NK, axis=1)
    np.testing.assert_allclose(plan.gate_NK, jax.nn.sigmoid(score_NK), rtol=1e-6)
  with pytest.raises(Wrong, match="base: eps 0 and iterations 100 do not end"):
    base.Config(eps=0)


def test_sinkhorn_makes_rows_and_columns_even_and_padding_has_no_say():
  valid_N = jnp.arange(N) % 4 > 0
  even = jax.jit(sinkhorn.doubly_stochastic, static_argnums=(2, 3))
  for scale, atol in ((1.0, 1e-4), (10.0, 1e-2), (1e4, None)):
    even_NE = np.asarray(even(scale * LOGIT_NE, valid_N, 1e-6, 500))
    assert np.all(np.isfinite(even_NE)) and np.all(even_NE[::4] == 0)
    np.testing.assert_allclose(even_NE.sum(1), valid_N, rtol=1e-5)
    if atol:  # choices that are nearly hard cannot be even
      np.testing.assert_allclose(even_NE.sum(0), valid_N.sum() / E, rtol=atol)
  # no change where all is even already
  np.testing.assert_allclose(even(jnp.zeros((N, E)), ALL_N, 1e-6, 500), 1 / E, rtol=1e-6)


def test_sinkhorn_evens_the_load_in_training_alone():
  tilted_NE = LOGIT_NE + jnp.array([[4.0, 0.0, 0.0, 0.0]])
  load = lambda key: plan_of(sinkhorn.Config(), tilted_NE, key=key).count_U()
  assert load(None)[0] > N / 2 and load(KEY).max() < 1.5 * N / E
  two = plan_of(sinkhorn.Config(k=2), tilted_NE)
  np.testing.assert_array_equal(two.expert_NK, jax.lax.top_k(tilted_NE, 2)[1])


def soft_layer(**fields):
  cfg = moe.Config(soft.Config(2.0), einsum.Config(), num_experts=E, hidden=6, **fields)
  layer, ctx = moe.Layer(cfg), RouterInputs(seq_len=N // 2)
  x_ND = drawn.normal(3, N, D)
  return layer, drawn.variables(layer, x_ND, ctx), x_ND, ctx


def test_a_soft_layer_is_the_loop_and_its_choices_by_label_are_its_slots():
  layer, variables, x_ND, ctx = soft_layer()
  ctx = ctx.replace(label_N=jnp.arange(N) % 3, labels=3, taps=("label_count_YU",))
  y_ND, sums, _ = jax.jit(lambda variables: layer.apply(variables, x_ND, ctx))(variables)
  inputs = ctx.replace(x_ND=x_ND, num_experts=E, groups=2)
  router = {"params": variables["params"]["router"]}
  logit_NE, inputs = soft.Router(soft.Config(2.0)).apply(router, inputs)
  plan = soft.choose(logit_NE, inputs, soft.Config(2.0))
  experts = {name: np.asarray(variables["params"][name]) for name in ("wg_EDF", "wu_EDF", "wo_EFD")}
  want_ND = oracle.dispatch.run(jax.tree.map(np.asarray, plan), np.asarray(x_ND), experts)
  np.testing.assert_allclose(y_ND, want_ND, atol=1e-5)
  assert plan.dispatch_NEC.shape == (N, E, 6)
  np.testing.assert_allclose(jax.nn.softmax(logit_NE), plan.combine_NEC.sum(2), rtol=1e-5)
  np.testing.assert_array_equal(sums["count_U"], 12)
  np.testing.assert_allclose(sums["taps/label_count_YU"].sum(0), 12, rtol=1e-5)


def test_soft_looks_at_directions_and_refuses_what_it_cannot():
  layer, variables, x_ND, ctx = soft_layer()
  router = {"params": variables["params"]["router"]}
  inputs = ctx.replace(x_ND=x_ND, num_experts=E, groups=2)
  logits = lambda inputs: soft.Router(soft.Config(2.0)).apply(router, inputs)[0]
  assert_close(logits(inputs.replace(x_ND=7 * x_ND)), logits(inputs))
  with pytest.raises(Wrong, match="mixes tokens instead of choosing some; use the dispatch 'ein"):
    moe.Layer(moe.Config(soft.Config(2.0), sort.Config(), E, 6)).apply(variables, x_ND, ctx)
  with pytest.raises(Wrong, match=r"soft: 0 slots per expert .*tokens per group 12, experts 4"):
    soft.slots(inputs, soft.Config(0.1))
  forced = ctx.replace(forced_NK=jnp.zeros((N, 1), int))
  with pytest.raises(Wrong, match="soft: mixtures of tokens have no ids to be forced"):
    layer.apply(variables, x_ND, forced)


def test_distillation_teaches_the_light_router_alone():
  rules = (("distill", distill.Config()),)
  layer = moe.Layer(moe.Config(stable.Config(), sort.Config(), E, 6, balance=rules))
  light_NR = drawn.normal(4, N, stable.Config().rank)
  ctx = RouterInputs(seq_len=N, shared={"stable": {"light_NR": light_NR}})
  x_ND = drawn.normal(3, N, D)

  def cross_entropy(params, x_ND):
    return layer.apply({**variables, "params": params}, x_ND, ctx)[1]["distill/cross_entropy"]

  variables = drawn.variables(layer, x_ND, ctx)
  grads, x_grad_ND = jax.jit(jax.grad(cross_entropy, argnums=(0, 1)))(variables["params"], x_ND)
  moved = {name for name, leaf in flat(grads).items() if np.any(leaf)}
  assert moved == {"router/light_RE"} and not np.any(x_grad_ND)


def flat(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def test_the_second_stage_of_stablemoe_routes_by_the_token_and_training_leaves_it_alone(moe_model):
  """The stage of the study on a tiny model; whatever the gradients are, and large steps."""
  first = moe_model("stable", layers=("moe", "moe"), balance={"distill": {}, "stable": {}})
  cfg = config.resolve({"model": config.dump(first.cfg)})
  _, model_cfg = stages.changed(cfg, cfg.model, STAGES[1]["changes"])
  assert model_cfg.layers[0].ffn.router.routed_by == "light"
  assert not model_cfg.layers[0].ffn.balance

  model, token_BT = decoder.Model(model_cfg), TOKEN_N.reshape(2, -1) % 11
  variables = drawn.variables(model, token_BT)
  before, grads = variables["params"], drawn.variables(model, token_BT, seed=1)["params"]
  trainable = STAGES[1]["trainable"]
  tx = adamw.make(adamw.Config(), lambda step: 0.3, before, trainable=trainable)
  after = optax.apply_updates(before, jax.jit(tx.update)(grads, tx.init(before), before)[0])
  kept = {name for name, leaf in flat(before).items() if np.all(leaf == flat(after)[name])}
  assert kept == {"stable/table_VR", "layers_000_001/0/ffn/router/light_RE"}

  choices = jax.jit(lambda params: chosen(model, {**variables, "params": params}, token_BT))
  was_LNK, is_LNK = choices(before), choices(after)
  np.testing.assert_array_equal(was_LNK, is_LNK)
  token_N = np.asarray(token_BT).ravel()
  for expert_NK in np.asarray(is_LNK):
    pairs = {(int(token), int(e)) for token, e in zip(token_N, expert_NK[:, 0], strict=True)}
    assert len(pairs) == len(set(token_N)) > len({e for _, e in pairs}) > 1


def chosen(model, variables, token_BT):
  """The ids of every layer."""
  _, sums = model.apply(variables, token_BT, RouterInputs(taps=("expert_NK",)))
  return sums["layers_000_001"]["0"]["ffn"]["taps/expert_NK"]
