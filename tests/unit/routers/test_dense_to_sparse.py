"""From dense to sparse: the limits of temperature and threshold, the switch, noise, the loss."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.balance import dts
from moejax.core import routing
from moejax.core.plan import ExpertPlan, RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.routers import dense_to_sparse
from moejax.routers.dense_to_sparse import Config

N, D, E = 32, 8, 4
LOGIT_NE = 2 * drawn.normal(0, N, E)


@jax.jit
def knobs_decide(temperature, hard):
  """One compiled function whatever the knobs are: a schedule never recompiles."""
  knobs = {"temperature": temperature, "hard": hard}
  inputs = RouterInputs(num_experts=E, knobs=knobs)
  plan = moe.decide(LOGIT_NE, inputs, Config())
  return plan.weights_NE(), (plan.expert_NK >= 0).sum(1)


def test_hot_is_uniform_over_all_and_cold_is_one_hot():
  weight_NE, chosen_N = knobs_decide(1e9, 0.0)
  np.testing.assert_allclose(weight_NE, 1 / E, rtol=1e-6)
  np.testing.assert_array_equal(chosen_N, E)
  weight_NE, chosen_N = knobs_decide(1e-4, 0.0)
  np.testing.assert_allclose(weight_NE, jax.nn.one_hot(LOGIT_NE.argmax(1), E), atol=1e-6)
  assert knobs_decide._cache_size() == 1


def test_behind_the_switch_exactly_one_is_chosen_with_its_gate():
  weight_NE, chosen_N = knobs_decide(1.0, 1.0)
  np.testing.assert_array_equal(chosen_N, 1)
  first_NE = jax.nn.one_hot(LOGIT_NE.argmax(1), E)
  np.testing.assert_allclose(weight_NE, jax.nn.softmax(LOGIT_NE) * first_NE, rtol=1e-6)
  above = RouterInputs(num_experts=E, knobs={"hard": jnp.float32(1)})
  plan = moe.decide(jnp.zeros((N, E)), above, Config(threshold=0.9))  # none is above it
  np.testing.assert_array_equal((plan.expert_NK >= 0).sum(1), 1)


def test_a_threshold_of_zero_is_the_dense_mixture():
  plan = moe.decide(LOGIT_NE, RouterInputs(num_experts=E), Config(threshold=0.0))
  np.testing.assert_array_equal(plan.count_U(), N)
  np.testing.assert_allclose(plan.weights_NE(), jax.nn.softmax(LOGIT_NE), rtol=1e-6)
  np.testing.assert_allclose(plan.gate_NK.sum(1), 1, rtol=1e-6)


def routed(cfg, key, gate_DE):
  """(logits, plan, inputs) of the router at work."""
  inputs = RouterInputs(x_ND=drawn.normal(1, N, D), num_experts=E, key=key)
  variables = {"params": {"gate_DE": gate_DE}}
  logit_NE, inputs = dense_to_sparse.Router(cfg).apply(variables, inputs)
  return logit_NE, moe.decide(logit_NE, inputs, cfg), inputs


@pytest.mark.parametrize("noisy", [True, False])
def test_noise_is_gumbel_decides_in_training_only_and_is_in_the_gates_if_asked(noisy):
  cfg, gate_DE = Config(noisy_gates=noisy, temperature=0.5), drawn.normal(2, D, E)
  clean_NE, _, inputs = routed(cfg, None, gate_DE)
  np.testing.assert_array_equal(inputs.extras["clean_NU"], clean_NE)
  logit_NE, plan, inputs = routed(cfg, jax.random.key(1), gate_DE)
  noise = np.asarray(logit_NE - clean_NE)
  assert abs(noise.mean() - np.euler_gamma) < 0.3 and 0.9 < noise.std() < 1.7  # pi / sqrt(6)
  np.testing.assert_array_equal(plan.expert_NK[:, 0], logit_NE.argmax(1))
  want_NE = jax.nn.softmax(logit_NE / 0.5 if noisy else clean_NE)
  assert_close(inputs.extras["gate_NU"], want_NE)
  assert_close(plan.gate_NK, routing.take(want_NE, plan.expert_NK))


def test_the_loss_reads_the_gates_that_the_router_used():
  cfg, gate_DE = Config(temperature=0.5, threshold=0.1), drawn.normal(2, D, E)

  def value(gate_DE):
    logit_NE, plan, inputs = routed(cfg, jax.random.key(1), gate_DE)
    sums = {"count_U": plan.count_U(), "tokens": jnp.float32(N)}
    sums |= dts.observe(plan, logit_NE, inputs, dts.Config())
    return dts.loss(jax.tree.map(lambda leaf: leaf[None], sums), {}, dts.Config()), plan

  grad_DE, plan = jax.grad(value, has_aux=True)(gate_DE)
  weight_NE = np.asarray(plan.weights_NE())
  want = E * np.sum(weight_NE.mean(0) * (weight_NE > 0).mean(0))
  np.testing.assert_allclose(value(gate_DE)[0], want, rtol=1e-5)
  assert float(jnp.abs(grad_DE).min()) > 0


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"threshold": 1.0}])
def test_temperatures_and_thresholds_that_cannot_be_are_refused(fields):
  with pytest.raises(Wrong, match="dense_to_sparse: temperature .* threshold"):
    Config(**fields)


def test_the_loss_refuses_a_plan_by_experts():
  plan = ExpertPlan(jnp.zeros((E, 2), jnp.int32), jnp.ones((E, 2)), N)
  with pytest.raises(Wrong, match="dts: .* lets experts choose"):
    dts.observe(plan, LOGIT_NE, RouterInputs(num_experts=E), dts.Config())
