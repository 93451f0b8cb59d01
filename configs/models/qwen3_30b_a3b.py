"""Qwen3-30B-A3B: 30.5B parameters, 3.35B of them active (3.3B in the paper).

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
        width=2048,
        tied=False,
        norm_eps=1e-6,
        attention=dict(
          name="gqa", heads=32, kv_heads=4, head_width=128, qk_norm="head", rope_theta=1e6
        ),
        moe=dict(
          num_experts=128,
          hidden=768,
          router=dict(name="topk", k=8),
        ),
        layers=[dict(ffn="moe")] * 48,
      )
    )
  )
