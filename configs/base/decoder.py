"""Small decoders that train on two CPU cores.

Run:    python -m experiments.run --config=configs/base/decoder.py:small
"""

import ml_collections

from configs.base import merge

ARMS = ("tiny", "small", "brief", "spread")


def tiny() -> ml_collections.ConfigDict:
  """Dense and MoE layers in turn, as small as they come: for tests."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=257,
        width=32,
        attention=dict(name="gqa", heads=2, kv_heads=1, head_width=16),
        mlp=dict(hidden=64),
        moe=dict(
          num_experts=4,
          hidden=32,
          router=dict(name="topk", k=2),
          balance=dict(switch=dict(weight=0.01)),
          dispatch=dict(name="sort"),
        ),
        layers=[dict(ffn="mlp"), dict(ffn="moe")] * 2,
      ),
      data=dict(source="stdlib_text", tokenizer="bytes", seq_len=64),
      train=dict(steps=30, batch_size=8, lr_peak=1e-2, seed=0),
    )
  )


def small() -> ml_collections.ConfigDict:
  """Four MoE layers, eight experts, two of them for each token: for sweeps and studies."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        width=128,
        attention=dict(name="gqa", heads=4, kv_heads=2, head_width=32),
        mlp=dict(hidden=256),
        moe=dict(
          num_experts=8,
          hidden=128,
          router=dict(name="topk", k=2),
          balance=dict(switch=dict(weight=0.01)),
          dispatch=dict(name="sort"),
        ),
        layers=[dict(ffn="moe")] * 4,
      ),
      data=dict(source="stdlib_text", tokenizer="bpe:1024", seq_len=128, validation=0.02),
      train=dict(
        steps=300,
        batch_size=16,
        lr_peak=3e-3,
        schedule=dict(name="cosine", warmup_steps=20),
        eval_every=50,
        eval_batches=8,
        checkpoint_every=200,
        sample_tokens=0,
        seed=0,
      ),
    )
  )


def brief() -> ml_collections.ConfigDict:
  """Half a minute of one core: three narrow MoE layers, for studies of many arms."""
  return merge(
    small(),
    model=dict(
      width=64,
      attention=dict(name="gqa", heads=2, kv_heads=1, head_width=32),
      mlp=dict(hidden=128),
      moe=dict(hidden=64),
      layers=[dict(ffn="moe")] * 3,
    ),
    train=dict(steps=200, eval_every=100, eval_batches=16, log_every=10),
  )


def spread() -> ml_collections.ConfigDict:
  """Two tiny MoE layers for eight virtual devices: for studies of what moves between them."""
  return merge(
    tiny(),
    model=dict(
      moe=dict(num_experts=8, edits=[dict(name="capacity", factor=1.25)]),
      layers=[dict(ffn="moe")] * 2,
    ),
    train=dict(
      steps=30, batch_size=16, eval_every=30, eval_batches=8, log_every=10, sample_tokens=0
    ),
    mesh="expert:8",
  )


def get_config(arm: str = "tiny") -> ml_collections.ConfigDict:
  """One of the recipes by its name."""
  return {"tiny": tiny, "small": small, "brief": brief, "spread": spread}[arm]()
