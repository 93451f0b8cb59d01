"""Hydra's parts against loops, and its limits."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core import config, plugin
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import ssm, workspace

B, T, D = 2, 7, 6
X_BTD = drawn.normal(0, B, T, D)
SEGMENT_BT = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
CTX = RouterInputs(seq_len=T, segment_N=jnp.asarray(SEGMENT_BT.ravel()))
SECTIONS = {
  "ssm": {"hidden": 4, "states": 2, "rank": 2},
  "attention": {"heads": 2, "kv_heads": 1, "head_width": 4, "window": 2, "anchors": 1},
  "workspace": {"slots": 2, "width": 4},
  "moe": {"num_experts": 4, "hidden": 4, "router": {"name": "chunk", "chunk": 2},
          "dispatch": {"name": "dense"}},
}  # fmt: skip


def block(*branches):
  sections = {name: SECTIONS[name] for name in ("ssm", *branches)}
  cfg = config.section("layers", {"name": "hydra", **sections})
  return plugin.module(cfg).Block(cfg)


def silu(x):
  return x / (1 + np.exp(-x))


def documents():
  """(row, first, last) of each."""
  return [(0, 0, 3), (0, 3, T), (1, 0, T)]


def test_the_state_space_is_the_recurrence_token_by_token():
  cfg = ssm.Config(hidden=4, states=3, rank=2, taps=3)
  variables = drawn.variables(ssm.Layer(cfg), X_BTD, CTX)
  got_BTD = jax.jit(lambda: ssm.Layer(cfg).apply(variables, X_BTD, CTX))()
  p = {name: np.asarray(leaf, np.float64) for name, leaf in variables["params"].items()}
  x_BTD = np.asarray(X_BTD, np.float64)
  for row, first, last in documents():
    state_FS = np.zeros((4, 3))
    for t in range(first, last):
      u_F = sum(p["conv_WF"][i] * (x_BTD[row, t - i] @ p["wu_DF"])
                for i in range(3) if t - i >= first)  # fmt: skip
      u_F = silu(u_F)
      step_F = np.log1p(np.exp(u_F @ p["step_FR"] @ p["step_RF"] + p["bias_F"]))
      state_FS = np.exp(-step_F[:, None] * np.exp(p["log_FS"])) * state_FS
      state_FS += (step_F * u_F)[:, None] * (u_F @ p["in_FS"])[None]
      y_F = state_FS @ (u_F @ p["out_FS"]) + p["skip_F"] * u_F
      want_D = (y_F * silu(x_BTD[row, t] @ p["wz_DF"])) @ p["wo_FD"]
      np.testing.assert_allclose(got_BTD[row, t], want_D, rtol=1e-4, atol=1e-5)


def test_the_workspace_is_a_mean_over_the_tokens_so_far():
  cfg = workspace.Config(slots=2, width=4)
  variables = drawn.variables(workspace.Layer(cfg), X_BTD, CTX)
  got_BTD = jax.jit(lambda: workspace.Layer(cfg).apply(variables, X_BTD, CTX))()
  p = {name: np.asarray(leaf, np.float64) for name, leaf in variables["params"].items()}
  x_BTD = np.asarray(X_BTD, np.float64)
  for row, first, last in documents():
    for t in range(first, last):
      slots = []
      for start_A in p["start_PA"]:
        power, total_A = 1.0, start_A.copy()
        for s in range(first, t + 1):
          score = start_A @ (x_BTD[row, s] @ p["wk_DA"]) / 2
          weight = np.exp(workspace.CAP * np.tanh(score / workspace.CAP))
          total_A += weight * (x_BTD[row, s] @ p["wv_DA"])
          power += weight
        slots.append(total_A / power)
      score_P = np.array([slot_A @ (x_BTD[row, t] @ p["wq_DA"]) / 2 for slot_A in slots])
      weight_P = np.exp(score_P) / np.exp(score_P).sum()
      want_D = (weight_P @ np.array(slots)) @ p["wo_AD"]
      np.testing.assert_allclose(got_BTD[row, t], want_D, rtol=1e-4, atol=1e-5)


BRANCHES = ("attention", "workspace", "moe")


@functools.cache
def whole():
  """(parameters, function of parameters, knobs and x) of a block with all its branches but one."""
  unit = block(*BRANCHES)
  variables = drawn.variables(unit, X_BTD, CTX)

  @jax.jit
  def run(params, knobs, x_BTD):
    return unit.apply({**variables, "params": params}, x_BTD, CTX.replace(knobs=knobs))[0]

  return variables["params"], run


def knobs(*opened):
  return {f"open_{name}": jnp.float32(name in opened) for name in BRANCHES}


@pytest.mark.slow
def test_closed_gates_leave_the_bare_backbone():
  """By the gates themselves, and by their knobs; and each knob opens something."""
  params, run = whole()
  own = {name: params[name] for name in ("ssm", "ssm_norm")}
  bare_BTD = jax.jit(lambda: block().apply({"params": own}, X_BTD, CTX)[0])()
  shut = {**params, **{f"bias_{name}_G": jnp.full(1, -1e9) for name in BRANCHES}}
  other = {**jax.tree.map(lambda leaf: 2 * leaf, shut), **own}  # other branches
  want_BTD = run(params, knobs(), X_BTD)
  np.testing.assert_allclose(want_BTD, bare_BTD, atol=1e-7)  # two programs may round differently
  np.testing.assert_array_equal(run(shut, knobs(*BRANCHES), X_BTD), want_BTD)
  np.testing.assert_array_equal(run(other, knobs(*BRANCHES), X_BTD), want_BTD)
  for name in BRANCHES:
    assert np.abs(run(params, knobs(name), X_BTD) - want_BTD).max() > 1e-3


def test_the_whole_block_is_causal_and_keeps_documents_apart():
  params, run = whole()
  want_BTD = run(params, knobs(*BRANCHES), X_BTD)
  for t in (2, 5):
    got_BTD = run(params, knobs(*BRANCHES), X_BTD.at[:, t].add(1.0))
    off_BT = np.abs(got_BTD - want_BTD).max(2)
    np.testing.assert_allclose(off_BT[:, :t], 0, atol=1e-6)
    np.testing.assert_allclose(off_BT[SEGMENT_BT != SEGMENT_BT[:, [t]]], 0, atol=1e-6)
    assert off_BT[:, t].min() > 1e-3


@pytest.mark.parametrize("make", [ssm.Config, workspace.Config])
def test_nothing_is_refused(make):
  field = next(iter(make.__dataclass_fields__))
  with pytest.raises(Wrong, match=f"{field} is 0"):
    make(**{field: 0})


def test_a_branch_is_taken_out_of_a_layer():
  layers = [{"name": "hydra", "attention": None}, {"name": "hydra"}]
  cfg = config.section("model", {"vocab": 11, **SECTIONS, "layers": layers})
  first, second = cfg.layers
  assert first.attention is None and second.attention.window == 2
  assert first.memory is None and first.workspace.slots == 2
  assert config.section("model", config.dump(cfg)) == cfg
