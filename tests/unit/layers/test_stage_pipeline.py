"""Pipelines: the bookkeeping of a schedule by hand, layers against a plain scan, sentences."""

import functools
import itertools

import eight
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax import lax

from moejax.core import config, runs
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import pipeline
from moejax.train import mesh as meshes

SCHEDULES = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 3, 1), (4, 8, 1), (3, 3, 2), (2, 5, 3), (4, 6, 4)]
B, T, D = 8, 3, 2


@pytest.mark.parametrize(("S", "M", "V"), SCHEDULES)
def test_every_part_of_the_work_is_done_once_and_after_the_part_before_it(S, M, V):
  plan, when = pipeline.Schedule(S, M, V), {}
  for t, s in itertools.product(range(plan.ticks), range(S)):
    round_, m, busy = plan.at(t, s)
    if busy:
      assert (int(m), int(round_) * S + s) not in when, "done twice"
      when[int(m), int(round_) * S + s] = t
  assert set(when) == set(itertools.product(range(M), range(V * S)))
  for m, block in itertools.product(range(M), range(1, V * S)):
    wait = when[m, block] - when[m, block - 1]
    at_home = block % S == 0  # where a micro-batch waits for the others of its round
    assert wait == (M - S + 1 if at_home else 1)
  idle = 1 - len(when) / (S * plan.ticks)
  assert idle == pytest.approx(plan.bubble)


@pytest.mark.parametrize(("S", "M", "V"), SCHEDULES)
def test_what_comes_home_is_what_the_last_stage_sent(S, M, V):
  plan = pipeline.Schedule(S, M, V)
  for t in range(plan.ticks + 1):
    m, came = plan.home(t)
    assert came == (t >= S)
    if came:
      assert m == plan.at(t - 1, S - 1)[1]


@pytest.mark.parametrize(("S", "V"), list(itertools.product(range(1, 7), range(1, 7))))
def test_weights_reach_the_stage_of_their_block_in_as_many_exchanges_as_rounds(S, V):
  got = {s: [] for s in range(S)}
  for sends in pipeline.Schedule(S, S, V).exchanges():
    assert sorted(target for _, target in sends) == list(range(S)), "each stage gets one"
    for s, (block, target) in enumerate(sends):
      got[target].append(V * s + block)
  assert all(sorted(blocks) == list(range(s, V * S, S)) for s, blocks in got.items())


def body(weights, moving, ctx, per_layer):
  """Layers that use all they are given: x, a carry by token, a counter, knobs, positions."""

  def layer(moving, here):
    w, mine = here
    x_BTD, carry = moving["x_BTD"], moving["carry"]
    given_BT = (ctx.position_N + mine["forced_NK"][0, :, 0]).reshape(x_BTD.shape[:2])
    hidden_NR = jnp.tanh(carry["hidden_NR"] + x_BTD.reshape(-1, D) * w["params"]["scale_D"][None])
    add_BTD = hidden_NR.reshape(x_BTD.shape) * mine["knobs"]["gain"][0] + given_BT[..., None]
    y_BTD = x_BTD + jnp.tanh(add_BTD @ w["params"]["w_DD"])
    sums = {
      "total_D": y_BTD.sum((0, 1)),
      "y_max": y_BTD.max(),
      "taps/first_N": y_BTD[..., 0].ravel(),
    }
    carry = {"hidden_NR": hidden_NR, "layer": carry["layer"] + 1}
    return {"x_BTD": y_BTD, "carry": carry}, {"0": sums}

  return lax.scan(layer, moving, (weights, per_layer))


@functools.cache
def given(L):
  """(variables, moving, ctx, per_layer) of L layers."""
  draw, N = np.random.default_rng(0), B * T
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  weights = {"params": {"w_DD": normal(L, D, D), "scale_D": normal(L, D)}}
  carry = {"hidden_NR": normal(N, D), "layer": jnp.int32(0)}
  ctx = RouterInputs(position_N=normal(N), seq_len=T)
  per_layer = {"knobs": {"gain": normal(L, 1)}, "forced_NK": normal(L, 1, N, 2), "key": None}
  return weights, {"x_BTD": normal(B, T, D), "carry": carry}, ctx, per_layer


def outcome(layers, weights, moving, ctx, per_layer):
  """((loss, what it was made of), gradients) of weights, x, carry, positions and knobs."""

  def loss(weights, x_BTD, hidden_NR, position_N, gain):
    start = {"x_BTD": x_BTD, "carry": {**moving["carry"], "hidden_NR": hidden_NR}}
    mine = {**per_layer, "knobs": {"gain": gain}}
    end, sums = layers(weights, start, ctx.replace(position_N=position_N), mine)
    sums = sums["0"]
    total = jnp.sin(end["x_BTD"]).sum() + jnp.cos(end["carry"]["hidden_NR"]).sum()
    return total + (sums["total_D"] ** 2).sum() + sums["taps/first_N"].sum(), (end, sums)

  carry = moving["carry"]["hidden_NR"]
  floats = (weights, moving["x_BTD"], carry, ctx.position_N, per_layer["knobs"]["gain"])
  return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)(*floats)


CASES = {
  "gpipe": (pipeline.Schedule(2, 2), 2, 1),
  "queue": (pipeline.Schedule(4, 8), 4, 1),
  "pairs of rows": (pipeline.Schedule(2, 4), 4, 2),
  "few": (pipeline.Schedule(4, 2), 4, 1),
  "circular": (pipeline.Schedule(2, 2, 3), 6, 1),
  "circular, queue": (pipeline.Schedule(4, 8, 2), 16, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_layers_on_stages_give_what_they_give_one_after_another(case):
  plan, L, rows = CASES[case]
  want = jax.jit(functools.partial(outcome, body))(*given(L))
  with jax.set_mesh(eight.mesh(stage=plan.stages)):
    staged = functools.partial(pipeline.run, body, plan, rows)
    compiled = jax.jit(functools.partial(outcome, staged)).lower(*given(L)).compile()
    got = compiled(*given(L))
  assert_close(got, want)
  moved = [one for one in eight.moved(compiled) if one.kind == "collective-permute"]
  size = 4 * B * T * D / plan.microbatches  # of x, and of the carry, in one micro-batch
  ticks = [one for one in moved if one.times == plan.ticks]
  assert sum(one.bytes for one in ticks) == 2 * plan.ticks * (2 * size) + 4 * plan.ticks


def test_gradients_of_narrow_weights_add_up_wide():
  """256 + 1 is 256 in bfloat16, however often it is done."""
  scale = lambda weights, moving, ctx, per_layer: lax.scan(
    lambda moving, w: ({"x_BTD": moving["x_BTD"] * w, "carry": {}}, {}), moving, weights
  )
  x_BTD = jnp.ones((32, 1, 1), jnp.bfloat16).at[-1].set(256)  # the first to come back

  def loss(weights):
    moving, ctx = {"x_BTD": x_BTD, "carry": {}}, RouterInputs(seq_len=1)
    plan = pipeline.Schedule(2, 32)
    return pipeline.run(scale, plan, 1, weights, moving, ctx, {"key": None})[0]["x_BTD"].sum()

  with jax.set_mesh(eight.mesh(stage=2)):
    found = jax.jit(jax.grad(loss))(jnp.ones(2, jnp.bfloat16))
  assert found.dtype == jnp.bfloat16 and found.tolist() == [288.0, 288.0]


def layers_of(*names):
  section = {"vocab": 8, "moe": {"groups": 2}, "layers": [{"ffn": name} for name in names]}
  return config.resolve({"model": section}).model.layers


def test_the_longest_run_that_the_stages_divide_is_cut():
  layers = layers_of("mlp", "moe", "moe", "moe", "moe", "mlp", "mlp", "mlp")
  name = lambda S, V=1: pipeline.longest(layers, pipeline.Config(rounds=V), S).name
  assert name(2) == name(4) == name(2, 2) == "layers_001_004" and name(3) == "layers_005_007"
  with pytest.raises(Wrong, match=r"with 2 rounds needs .* that 6 divides, and .*layers_001_004"):
    name(3, 2)


def test_tokens_that_compete_stay_in_one_micro_batch():
  [run] = runs.fold(layers_of("moe", "moe"))  # two groups
  assert pipeline.unit(run, 8, 5, 2) == 4
  with pytest.raises(Wrong, match="compete over 4 of 8 rows .*, which 4 micro-batches would cut"):
    pipeline.unit(run, 8, 5, 4)


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"model.pipeline": {"microbatches": 0}}, "microbatches is 0 and rounds is 1"),
    ({"model.pipeline": {"rounds": 2, "microbatches": 1}}, "1 micro-batches cannot go round 2"),
    ({"train": {"batch_size": 12}}, "12 rows do not form 2 micro-batches that 4 devices divide"),
    ({"model.pipeline": {"rounds": 4}}, "stage:2 with 4 rounds needs .* and the longest run"),
  ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(changes, sentence):
  section = {"model": {"vocab": 8, "layers": {"depth": 4}}, "mesh": "data:4,stage:2"}
  section["train"] = changes.get("train", {"batch_size": 16})
  section["model"]["pipeline"] = changes.get("model.pipeline", {})
  with pytest.raises(Wrong, match=sentence):
    cfg = config.resolve(section)
    meshes.check(cfg, meshes.make(cfg.mesh))
