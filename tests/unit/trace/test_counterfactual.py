"""Counterfactual routing: exactly what a loop that forces choices by hand finds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import cli
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.lab import counterfactual, scoring
from moejax.train import restore

U, T, LAYER = 5, 16, 1


@pytest.fixture(scope="module")
def run(traced):
  return restore.load(traced.workdir)


@pytest.fixture(scope="module")
def by_hand(run):
  """(loss_T, choices [L, T, K]) of one row of text, whose ids in the second layer may be forced."""
  batch = scoring.batch_at(run, "validation", 0)

  @jax.jit
  def one(row, forced_TK):
    token_T, segment_T = batch["token_BT"][row], batch["segment_BT"][row]
    start_T = np.maximum.accumulate(
      np.where(np.diff(segment_T[:-1], prepend=-1) != 0, np.arange(T), 0)
    )
    ctx = RouterInputs(
      position_N=jnp.asarray(np.arange(T) - start_T), segment_N=jnp.asarray(segment_T[:-1]),
      valid_N=jnp.asarray(segment_T[:-1] > 0), taps=("expert_NK",),
      forced_NK=jnp.stack([jnp.full_like(forced_TK, -2), forced_TK]),
    )  # fmt: skip
    logit_BTV, sums = run.model.apply(run.variables, jnp.asarray(token_T[None, :-1]), ctx)
    prob_TV = jax.nn.log_softmax(logit_BTV[0])
    chosen = sums["layers_000_001"]["0"]["ffn"]["taps/expert_NK"]
    return -prob_TV[np.arange(T), token_T[1:]], chosen

  compiled = {}

  def call(row, forced_TK=None):
    forced_TK = np.full((T, 2), -2) if forced_TK is None else forced_TK
    compiled.setdefault(row, jax.jit(lambda forced_TK: one.__wrapped__(row, forced_TK)))
    loss_T, chosen = compiled[row](jnp.asarray(forced_TK, jnp.int32))
    return np.asarray(loss_T), np.asarray(chosen)

  return call


@pytest.fixture(scope="module")
def free(run):
  return counterfactual._free(run, "layer_001", U, False, scoring.Score(run))


@pytest.mark.slow
def test_one_token_at_a_time_is_the_loop_that_forces_by_hand(free, by_hand):
  row = int(np.argmax(free.valid_RT.sum(1)))
  loss_T, chosen = by_hand(row)
  np.testing.assert_array_equal(free.expert_RTK[row], chosen[LAYER])
  np.testing.assert_allclose(free.loss_RT[row], loss_T, rtol=1e-5)
  some = np.flatnonzero(free.valid_RT[row])[[0, 3]]
  places = np.array([[row, t] for t in some])
  own_PU, later_PU = counterfactual.exact(free, places, U)
  for p, t in enumerate(some):
    first, second = chosen[LAYER, t]  # in the order of their gates
    for u in range(U):
      if u == first:
        assert np.isnan(own_PU[p, u])
        continue
      forced_TK = np.full((T, 2), -2)
      forced_TK[t] = first, u
      want_T, _ = by_hand(row, forced_TK)
      np.testing.assert_allclose(own_PU[p, u], want_T[t], rtol=1e-5)
      after = (want_T * free.valid_RT[row])[t + 1 :].sum()
      np.testing.assert_allclose(later_PU[p, u], after, rtol=1e-5)
    np.testing.assert_allclose(own_PU[p, second], loss_T[t], rtol=1e-5)
  assert np.nanmax(np.abs(own_PU - loss_T[some][:, None])) > 1e-4  # the choice does matter

  forced_TK = np.stack([chosen[LAYER, :, 0], np.full(T, 3)], axis=1)
  forced_TK[chosen[LAYER, :, 0] == 3] = -2
  want_T, _ = by_hand(row, forced_TK)
  mine = counterfactual.cheap(free, places, U)[:, 3]
  known = np.isfinite(mine)
  np.testing.assert_allclose(mine[known], want_T[some][known], rtol=1e-5)


@pytest.mark.slow
def test_the_value_of_an_expert_is_what_its_absence_costs(free, by_hand):
  row = int(np.argmax(free.valid_RT.sum(1)))
  one = free._replace(
    batch={name: a[row : row + 1] for name, a in free.batch.items()},
    **{name: getattr(free, name)[row : row + 1] for name in free._fields if "_RT" in name},
  )
  loss_T, chosen = by_hand(row)
  valid_T = free.valid_RT[row]
  got_U = counterfactual.value(one, U)
  for u in range(U):
    forced_TK = np.where(chosen[LAYER] == u, -1, chosen[LAYER])
    want_T, _ = by_hand(row, forced_TK)
    np.testing.assert_allclose(got_U[u], (want_T - loss_T)[valid_T].mean(), atol=1e-6)
  assert np.abs(got_U).max() > 1e-4


def test_a_summary_knows_oracle_random_and_rank():
  own_PU = np.array([[1.0, 0.5, 3.0, np.nan], [2.0, 4.0, np.nan, 3.0]])
  found = counterfactual.summary(own_PU, own_PU * 0 + [[1, 2, 3, 4]], own_PU + 1, np.array([0, 0]))
  want = {"loss": 1.5, "oracle": 1.25, "random": (1.75 + 3.5) / 2, "regret": 0.25, "rank": 1.5,
          "best_share": 0.5, "alternatives": 3, "later": 0.5, "cheap_error": 0, "cheap_agrees": 1,
          "captured": 1.125 / 1.375, "regrets": [0.5, 0.0]}  # fmt: skip
  for name, number in want.items():
    np.testing.assert_allclose(found[name], number, err_msg=name)


def test_the_verb_writes_a_table_and_a_file(traced, capsys):
  words = ["counterfactual", traced.workdir, "--layer=layer_001", "--tokens=6"]
  assert cli.main(words) == 0
  out = capsys.readouterr().out
  assert "layer_001" in out and "captured" in out
  found = json.loads((restore.pathlib.Path(traced.workdir) / counterfactual.FILE).read_text())
  one = found["layers"]["layer_001"]
  assert one["tokens"] == 6 and len(one["regrets"]) == 6 and min(one["regrets"]) >= 0
  assert len(one["experts"]["value"]) == U and abs(sum(one["experts"]["load"]) - 1) < 1e-4
  assert one["oracle"] <= one["loss"] and 1 <= one["rank"] <= one["alternatives"] == U - 1


def test_taking_over_the_gate_leaves_the_weight_of_the_other_choice(run):
  """With gates="kept" the router's own choice is as it was, and the alternatives differ."""
  kept = counterfactual._free(run, "layer_001", U, True, scoring.Score(run))
  row = int(np.argmax(kept.valid_RT.sum(1)))
  t = int(np.flatnonzero(kept.valid_RT[row])[0])
  own_PU, _ = counterfactual.exact(kept, np.array([[row, t]]), U)
  chosen = kept.expert_RTK[row, t, kept.weak_RT[row, t]]
  np.testing.assert_allclose(own_PU[0, chosen], kept.loss_RT[row, t], rtol=1e-5)


def test_what_cannot_be_asked_is_refused(run):
  with pytest.raises(Wrong, match="no router is called 'layer_01'. Did you mean 'layer_01?"):
    counterfactual.measure(run, "layer_01")
  with pytest.raises(Wrong, match="0 tokens are none"):
    counterfactual.measure(run, "layer_001", tokens=0)
  with pytest.raises(Wrong, match="gates is 'mine'; use"):
    counterfactual.measure(run, "layer_001", gates="mine")
