"""Kimi K2: 1T parameters, 32B of them active, with multi-head latent attention.

Paper:  Kimi Team 2025, arXiv:2507.20534 (table 2); vocabulary and rotary base as in the
        configuration released with the weights. The first layer is dense. Grouped-query attention
        of as many heads stands in for the latent one, so that everything but the attention is as
        published.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=163_840,
        width=7168,
        tied=False,
        norm_eps=1e-6,
        attention=dict(name="gqa", heads=64, kv_heads=8, head_width=128, rope_theta=5e4),
        mlp=dict(hidden=18_432),
        moe=dict(
          num_experts=384,
          hidden=2048,
          router=dict(name="sigmoid_topk", k=8, scale=2.827),
          shared=dict(hidden=2048, gate="one"),
        ),
        layers=[dict(ffn="mlp")] + [dict(ffn="moe")] * 60,
      )
    )
  )
