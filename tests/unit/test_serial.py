"""Scaled residuals: at first the plain block, and each of their numbers does its own thing."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.blocks import serial
from moejax.core import config
from moejax.core.plan import RouterInputs

ATTENTION = {"heads": 2, "kv_heads": 1, "head_width": 2}
FIELDS = {"attention": ATTENTION, "ffn": {"name": "mlp", "hidden": 6}}
X_BTD, CTX = drawn.normal(0, 1, 3, 4), RouterInputs(seq_len=3)


def block(**fields):
  return serial.Block(config.section("layers", {**FIELDS, **fields}))


@pytest.mark.slow
def test_scaled_residuals_are_plain_ones_at_first_and_learn():
  plain = drawn.variables(block(), X_BTD, CTX)
  fresh = jax.jit(block(scaled=True).init)(jax.random.key(0), X_BTD, CTX)["params"]
  names = [f"{part}_{side}" for part in ("attention", "ffn") for side in ("stream", "part")]
  params = {**plain["params"], **{name: fresh[name] for name in names}}
  out = lambda params: block(scaled=True).apply({"params": params}, X_BTD, CTX)[0]
  np.testing.assert_array_equal(out(params), block().apply(plain, X_BTD, CTX)[0])
  grads = jax.grad(lambda params: jnp.sin(out(params)).sum())(params)
  for name in names:
    assert all(float(jnp.abs(leaf).min()) > 0 for leaf in grads[name].values()), name
  own = {"shift_D": jnp.ones(4), "scale_D": jnp.arange(4.0)}
  scaled_BTD = serial.Scale().apply({"params": own}, X_BTD)
  assert_close(scaled_BTD, (X_BTD + 1) * jnp.arange(4.0)[None, None])
