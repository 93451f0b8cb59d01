"""Top-1 without a shared expert: what an MLP router, depth averaging and skips bring (2 CPU cores).

Run:    python -m experiments.study zaya_router [--workers=2]
Expect: linear above mlp above averaged; the biases of adamw move less from step to step than
        those of sign; without a controller the load is the least even.
"""

from configs.base import decoder, merge

ZAYA = dict(name="depth_averaged", k=1, rank=16)
ADAMW = dict(switch=None, adamw=dict(speed=1e-2))

ARMS = {
  # probability + bias chooses in all arms, so that only the logits differ
  "linear": dict(router=dict(name="biased_topk", k=1), balance=ADAMW),
  "mlp": dict(router=dict(ZAYA, average=False), balance=ADAMW),
  "averaged": dict(router=ZAYA, balance=ADAMW),
  "skip": dict(router=ZAYA, virtual=["zero"], balance=ADAMW),
  "sign": dict(router=ZAYA, balance=dict(switch=None, sign=dict(speed=1e-2))),
  "none": dict(router=ZAYA, balance=dict(switch=None)),
}


def get_config(arm="averaged"):
  """The brief recipe with one expert of double width per token, and one arm's router."""
  return merge(decoder.brief(), model=dict(moe=dict(hidden=128, **ARMS[arm])))
