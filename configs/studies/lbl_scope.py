"""The balance loss over a sequence, a micro-batch of four sequences, or a step of sixteen.

Run:    python -m experiments.study lbl_scope [--workers=2]
Expect: experts specialise more by domain the wider the scope. Sequences of 128 tokens seldom hold
        more than one document, and documents are labelled by their package.
"""

from configs.base import decoder, merge

ARMS = {"sequence": "sequence", "micro_batch": "micro_batch", "step": "step"}


def get_config(arm="micro_batch"):
  """The brief recipe in four micro-batches, with one arm's scope."""
  balance = dict(switch=dict(weight=0.05, scope=ARMS[arm]))
  return merge(decoder.brief(), model=dict(moe=dict(balance=balance)), train=dict(accumulate=4))
