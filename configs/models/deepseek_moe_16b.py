"""DeepSeekMoE 16B: 16.4B parameters, 2.8B of them active.

Paper:  Dai et al. 2024, arXiv:2401.06066 (section 5.1.2); dense width and vocabulary as in the
        configuration released with the weights. The first layer is dense; two shared experts of
        1408 are one of 2816; gates are not renormalised.
"""

import ml_collections


def get_config():
  """The architecture alone."""
  return ml_collections.ConfigDict(
    dict(
      model=dict(
        name="decoder",
        vocab=102_400,
        width=2048,
        tied=False,
        norm_eps=1e-6,
        attention=dict(name="gqa", heads=16, kv_heads=16, head_width=128, rope_theta=1e4),
        mlp=dict(hidden=10_944),
        moe=dict(
          num_experts=64,
          hidden=1408,
          router=dict(name="topk", k=6, renormalise=False),
          shared=dict(hidden=2816, gate="one"),
        ),
        layers=[dict(ffn="mlp")] + [dict(ffn="moe")] * 27,
      )
    )
  )
