"""Mixtral 8x7B: 46.7B parameters, 12.9B of them active.

Paper:  Jiang et al. 2024, arXiv:2401.04088 (sizes in table 1); vocabulary and rotary base as in
        the configuration released with the weights.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=32_000,
        width=4096,
        tied=False,
        norm_eps=1e-5,
        attention=dict(name="gqa", heads=32, kv_heads=8, head_width=128, rope_theta=1e6),
        moe=dict(
          num_experts=8,
          hidden=14_336,
          router=dict(name="topk", k=2),
        ),
        layers=[dict(ffn="moe")] * 32,
      )
    )
  )
