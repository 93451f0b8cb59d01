"""Text from a model, one token at a time, each by a full forward pass (no cache)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import dtypes, rng
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.train import phase, restore


@functools.partial(jax.jit, static_argnums=(0, 1, 9))
def _write(model, precision, variables, knobs, token_T, length, key, temperature, vocab, count,
           kinds):  # fmt: skip
  """`token_T` with `count` tokens added from `length` on; the window moves when it is full."""
  T = len(token_T)

  def one(i, state):
    token_T, length = state
    moved_T = jnp.where(length == T, jnp.roll(token_T, -1), token_T)
    length = jnp.minimum(length, T - 1)
    valid_N = jnp.arange(T) < length
    ctx = RouterInputs(valid_N=valid_N, segment_N=valid_N.astype(jnp.int32), knobs=knobs, **kinds)
    logit_V = model.apply(variables, moved_T[None], ctx)[0][0, length - 1].astype(jnp.float32)
    logit_V = jnp.where(jnp.arange(len(logit_V)) < vocab, logit_V, -jnp.inf)
    drawn = jax.random.categorical(
      jax.random.fold_in(key, i), logit_V / jnp.maximum(temperature, 1e-6)
    )
    token = jnp.where(temperature > 0, drawn, jnp.argmax(logit_V))
    return moved_T.at[length].set(token.astype(token_T.dtype)), length + 1, token

  def step(carry, i):
    token_T, length, token = one(i, carry)
    return (token_T, length), token

  variables = {**variables, "params": dtypes.cast(variables["params"], precision)}
  return jax.lax.scan(step, (token_T, length), jnp.arange(count))[1]


def write(run, prompt: str, tokens: int, temperature: float = 0.6, seed: int = 0) -> str:
  """The prompt and `tokens` more tokens of a restore.Trained; temperature 0 takes the likeliest."""
  if tokens < 0 or temperature < 0:
    raise Wrong(f"generate: {tokens} tokens at temperature {temperature}; neither may be negative.")
  T, tokenizer = run.cfg.data.seq_len, run.corpus.tokenizer
  ids = tokenizer.encode(prompt)[-T:] or [tokenizer.eos]
  token_T = jnp.zeros(T, jnp.int32).at[: len(ids)].set(jnp.array(ids, jnp.int32))
  knobs = {name: value(run.step) for name, value in phase.knobs(run.cfg).items()}
  key = rng.stream(jax.random.key(seed), "sample")
  start = (run.variables, knobs, token_T, len(ids), key, temperature)
  known = run.corpus.kinds(np.zeros(T, np.int32))  # as text of the first label
  names = {"modality_BT": "modality_N", "cond_BTC": "cond_NC"}
  kinds = {names[name]: value for name, value in known.items()}
  new = _write(run.model, dtypes.filled(run.cfg.precision), *start, tokenizer.vocab, tokens, kinds)
  return prompt + tokenizer.decode(jax.device_get(new).tolist())


def from_run(workdir, prompt: str, tokens: int = 200, temperature: float = 0.8, seed: int = 0):
  """Text from the newest checkpoint of a run."""
  return write(restore.load(workdir), prompt, tokens, temperature, seed)
