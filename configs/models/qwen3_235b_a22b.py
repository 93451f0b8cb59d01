"""Qwen3-235B-A22B: 235B parameters, 22B of them active.

Paper:  Yang et al. 2025, arXiv:2505.09388 (layers, heads and experts); widths as in the
        configuration released with the weights.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=151_936,
        width=4096,
        tied=False,
        norm_eps=1e-6,
        attention=dict(
          name="gqa", heads=64, kv_heads=4, head_width=128, qk_norm="head", rope_theta=1e6
        ),
        moe=dict(
          num_experts=128,
          hidden=1536,
          router=dict(name="topk", k=8),
        ),
        layers=[dict(ffn="moe")] * 94,
      )
    )
  )
