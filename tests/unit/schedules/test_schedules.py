"""Schedules against optax's, traced, and what they refuse."""

import jax
import numpy as np
import optax
import pytest

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.schedules import constant, cosine, exponential, linear, piecewise, wsd

STEPS, WARMUP = 20, 4
RISE = optax.linear_schedule(1 / (WARMUP + 1), 1.0, WARMUP)


def joined(*parts, at=(WARMUP,)):
  return optax.join_schedules((RISE, *parts), at)


WANT = {
  "constant": (constant.Config(WARMUP), joined(optax.constant_schedule(1.0))),
  "linear": (
    linear.Config(WARMUP, end=0.2),
    joined(optax.linear_schedule(1.0, 0.2, STEPS - WARMUP)),
  ),
  "cosine": (
    cosine.Config(WARMUP, end=0.1),
    joined(optax.cosine_decay_schedule(1.0, STEPS - WARMUP, alpha=0.1)),
  ),
  "exponential": (
    exponential.Config(WARMUP, end=0.2, decay_steps=10),
    joined(optax.exponential_decay(1.0, 10, 0.2, end_value=0.2)),
  ),
  "piecewise": (
    piecewise.Config(values=(1.0, 0.5, 0.25), until=(0.5, 0.75)),
    optax.piecewise_constant_schedule(1.0, {10: 0.5, 15: 0.5}),
  ),
  "wsd": (
    wsd.Config(WARMUP, end=0.3, decay_fraction=0.25),
    joined(optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.3, 5), at=(WARMUP, 15)),
  ),
}


@pytest.mark.parametrize("name", plugin.names("schedules"))
def test_a_schedule_is_that_of_optax(name):
  cfg, want = WANT[name]
  step = np.arange(STEPS + 3)
  got = jax.jit(jax.vmap(lambda s: plugin.load("schedules", name).value(s, STEPS, cfg)))(step)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, [want(s) for s in step], rtol=1e-6, atol=1e-7)


def test_a_knob_may_rise_and_has_its_own_peak():
  cfg = linear.Config(peak=2.0, end=4.0)
  assert [float(linear.value(step, 4, cfg)) for step in (0, 2, 9)] == [2.0, 3.0, 4.0]


def test_the_root_shape_falls_steeply_first():
  cfg = wsd.Config(decay_fraction=0.4, shape="sqrt")
  assert [float(wsd.value(step, 10, cfg)) for step in (6, 7, 10)] == [1.0, 0.5, 0.0]


WARMED = [name for name, (cfg, _) in WANT.items() if hasattr(cfg, "warmup_steps")]


@pytest.mark.parametrize("name", WARMED)
def test_a_warm_up_longer_than_the_run_is_refused(name):
  module = plugin.load("schedules", name)
  with pytest.raises(Wrong, match=f"{name}: 20 warmup_steps do not fit in a run of 20 steps"):
    module.value(0, 20, module.Config(warmup_steps=20))
  with pytest.raises(Wrong, match="warmup_steps is -1; use 0 or more"):
    module.value(0, 20, module.Config(warmup_steps=-1))


def test_wsd_refuses_a_decay_that_meets_the_warm_up():
  with pytest.raises(Wrong, match="decay_fraction is 1.5; use a share"):
    wsd.Config(decay_fraction=1.5)
  with pytest.raises(Wrong, match="6 warmup_steps reach into the decay, which starts at step 5"):
    wsd.value(0, 10, wsd.Config(warmup_steps=6, decay_fraction=0.5))


@pytest.mark.parametrize(
  ("fields", "sentence"), [({"end": 0.0}, "end is 0.0"), ({"decay_steps": 0}, "decay_steps is 0")]
)
def test_an_exponential_that_cannot_be_is_refused(fields, sentence):
  with pytest.raises(Wrong, match=f"exponential: .*{sentence}"):
    exponential.Config(**fields)


@pytest.mark.parametrize(
  ("values", "until", "sentence"),
  [
    ((1.0, 2.0), (), "2 values end at .*until has an end for each"),
    ((1.0, 2.0, 3.0), (0.5, 0.5), r"3 values end at \[0.5, 0.5\]"),
    ((1.0, 2.0), (1.0,), "rising between 0 and 1"),
    ((1.0, (1.0, 2.0)), (0.5,), "not a mixture"),
  ],
)
def test_pieces_that_cannot_be_are_refused(values, until, sentence):
  with pytest.raises(Wrong, match=f"piecewise: .*{sentence}"):
    piecewise.Config(values, until)
