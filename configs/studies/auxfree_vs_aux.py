"""Balance without a loss against balance by a loss (2 CPU cores, about 20 s a run).

Run:    python -m experiments.study auxfree_vs_aux [--workers=2]
Expect: moved biases give an even load at the loss of the arm without any balance; a strong balance
        loss gives an even load at a higher loss.
"""

from configs.base import decoder, merge

ARMS = {
  "none": dict(switch=None),
  "aux_1e-3": dict(switch=dict(weight=1e-3, score="sigmoid")),
  "aux_1e-2": dict(switch=dict(weight=1e-2, score="sigmoid")),
  "sign": dict(switch=None, sign=dict(speed=1e-2)),
  "zero_mean": dict(switch=None, zero_mean=dict(speed=1e-2)),
  "proportional": dict(switch=None, proportional=dict(speed=0.2)),
  "quantile": dict(switch=None, quantile=dict()),
}


def get_config(arm="sign"):
  """The brief recipe with sigmoid scores and one arm's balance."""
  moe = dict(router=dict(name="sigmoid_topk", k=2), balance=ARMS[arm])
  return merge(decoder.brief(), model=dict(moe=moe), train=dict(steps=120, eval_every=120))
