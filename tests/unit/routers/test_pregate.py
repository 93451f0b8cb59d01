"""The router apart: its network against loops, what it can see, and that it needs no backbone."""

import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.models import decoder
from moejax.routers import pregate

B, T, VOCAB, E = 2, 5, 7, 4
CFG = pregate.Config(rank=8, heads=2)
TOKEN_BT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (B, T)))
SEGMENT_BT = jnp.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]])
POSITION_BT = jnp.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]])
CTX = RouterInputs(
  token_N=TOKEN_BT.ravel(), segment_N=SEGMENT_BT.ravel(), position_N=POSITION_BT.ravel(),
  seq_len=T, vocab=VOCAB, num_experts=E,
)  # fmt: skip
VARIABLES = drawn.variables(pregate.Shared(CFG), CTX)


@jax.jit
def logits(ctx):
  return pregate.Shared(CFG).apply(VARIABLES, ctx)["logit_NU"]


def normed(x_R, scale_R):
  return x_R / math.sqrt(np.mean(x_R**2) + 1e-6) * scale_R


def turned(x_R, position):
  """The heads of one vector, [H, A], each pair of channels turned."""
  x_HA = x_R.reshape(CFG.heads, -1)
  half, out_HA = x_HA.shape[1] // 2, np.zeros(x_HA.shape)
  for i in range(half):
    angle = position * 10_000 ** (-i / half)
    a, b = x_HA[:, i], x_HA[:, half + i]
    out_HA[:, i] = a * math.cos(angle) - b * math.sin(angle)
    out_HA[:, half + i] = a * math.sin(angle) + b * math.cos(angle)
  return out_HA


def gelu(a):
  return 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def loop(token_T, segment_T, position_T):
  """The logits of one row, token by token."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), VARIABLES["params"])
  block, x_TR = p["block_0"], p["table_VR"][np.asarray(token_T)]
  u_TR = np.array([normed(x_R, block["scale_attention_R"]) for x_R in x_TR])
  k_THA = [turned(u_R @ block["k_RR"], s) for u_R, s in zip(u_TR, position_T, strict=True)]
  rows = []
  for t in range(len(x_TR)):
    q_HA, heads = turned(u_TR[t] @ block["q_RR"], position_T[t]), []
    seen = [s for s in range(t + 1) if segment_T[s] == segment_T[t]]
    for h in range(CFG.heads):
      power = np.array([math.exp(q_HA[h] @ k_THA[s][h] / math.sqrt(q_HA.shape[1])) for s in seen])
      values = [(u_TR[s] @ block["v_RR"]).reshape(CFG.heads, -1)[h] for s in seen]
      heads.append(power / power.sum() @ np.array(values))
    x_R = x_TR[t] + np.concatenate(heads) @ block["out_RR"]
    x_R = x_R + gelu(normed(x_R, block["scale_mlp_R"]) @ block["up_RR"]) @ block["down_RR"]
    rows.append(normed(x_R, p["scale_R"]) @ p["gate_RE"])
  return rows


def test_the_network_is_the_loop():
  rows = [
    np.array(loop(*row)) for row in zip(TOKEN_BT, np.array(SEGMENT_BT), POSITION_BT, strict=True)
  ]
  assert_close(logits(CTX), np.concatenate(rows).astype(np.float32))


def test_a_later_token_or_another_document_changes_nothing_before_it():
  before_NE = logits(CTX)
  for t, same in ((4, [0, 1, 2, 3]), (1, [0, 3, 4])):
    other_BT = TOKEN_BT.at[0, t].set((TOKEN_BT[0, t] + 1) % VOCAB)
    after_NE = logits(CTX.replace(token_N=other_BT.ravel()))
    np.testing.assert_array_equal(after_NE[jnp.array(same)], before_NE[jnp.array(same)])
    np.testing.assert_array_equal(after_NE[T:], before_NE[T:])
    assert float(jnp.abs(after_NE[t] - before_NE[t]).max()) > 1e-3


def test_gates_are_exactly_one_and_only_the_straight_through_ones_teach():
  logit_NE = drawn.normal(4, B * T, E)

  def total(logit_NE, gates):
    cfg = pregate.Config(gates=gates)
    plan = moe.decide(logit_NE, RouterInputs(num_experts=E), cfg)
    np.testing.assert_array_equal(jax.lax.stop_gradient(plan.gate_NK), 1)
    return plan.gate_NK.sum()

  np.testing.assert_array_equal(jax.grad(total)(logit_NE, "one"), 0)
  want_NE = jax.grad(lambda logit_NE: jax.nn.softmax(logit_NE).max(1).sum())(logit_NE)
  assert_close(jax.grad(total)(logit_NE, "straight_through"), want_NE)


def model(experts=(E, E)):
  section = {
    "vocab": VOCAB, "width": 8, "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
    "moe": {"hidden": 4, "router": {"name": "pregate", "rank": 8, "heads": 2}},
    "layers": [{"ffn": "moe", "moe": {"num_experts": n}} for n in experts],
  }  # fmt: skip
  return decoder.Model(config.section("model", section))


@pytest.mark.slow
def test_every_layer_of_a_model_has_the_ids_that_were_known_before_it():
  ctx = CTX.replace(taps=("expert_NK",), num_experts=0, vocab=0, token_N=None)
  variables = drawn.variables(model(), TOKEN_BT, ctx)
  _, sums = jax.jit(lambda v: model().apply(v, TOKEN_BT, ctx))(variables)
  ahead_NK = pregate.look_ahead(variables["params"]["pregate"], CTX, CFG)
  seen_LNK = sums["layers_000_001"]["0"]["ffn"]["taps/expert_NK"]
  np.testing.assert_array_equal(seen_LNK, jnp.stack([ahead_NK] * 2))
  assert len(set(np.asarray(ahead_NK).ravel())) > 1


def test_gates_teach_every_part_of_the_network():
  def loss(params):
    logit_NE = pregate.Shared(CFG).apply({"params": params}, CTX)["logit_NU"]
    weight_NE = moe.decide(logit_NE, CTX, CFG).weights_NE()
    return jnp.sum(weight_NE * jnp.arange(E)[None])  # the experts' outputs, as far as gates know

  grads = jax.jit(jax.grad(loss))(VARIABLES["params"])
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert float(jnp.abs(leaf).max()) > 0, f"no gradient to {path}"


def test_what_cannot_be_is_refused():
  with pytest.raises(Wrong, match="pregate: it decides for all layers at once among 3 ids"):
    drawn.variables(model((E, E - 1)), TOKEN_BT)
  with pytest.raises(Wrong, match="rank 6 is not cut into 2 heads of even width"):
    pregate.Config(rank=6, heads=2)
  with pytest.raises(Wrong, match="this model has none"):
    drawn.variables(pregate.Shared(CFG), CTX.replace(token_N=None))


def test_distillation_is_the_loop():
  logit_NE, score_NE = drawn.normal(1, 6, E), 3 * drawn.normal(2, 6, E)
  rows = []
  for logit_E, score_E in zip(np.array(logit_NE, float), np.array(score_NE, float), strict=True):
    prob_E = np.exp(logit_E) / np.exp(logit_E).sum()
    hard = sum(-(0.5 * (e == score_E.argmax()) + 0.5 / E) * math.log(prob_E[e]) for e in range(E))
    soft_E = np.exp(score_E) / np.exp(score_E).sum()
    rows.append(0.75 * hard + 0.25 * sum(-soft_E[e] * math.log(prob_E[e]) for e in range(E)))
  assert_close(pregate.distillation(logit_NE, score_NE), np.array(rows, np.float32))
