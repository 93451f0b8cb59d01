"""Hot experts as copies on every device, where no loss evens the load (8 virtual CPU devices).

Run:    python -m experiments.study fssdp [--workers=2]
Expect: the same loss for any number of copies, bytes and memory of exactly the copies, and a
        busiest device that has less to do with each. Time on links is not measured here.
"""

from configs.base import decoder, merge

ARMS = {"hot0": 0, "hot1": 1, "hot2": 2, "hot4": 4, "hot8": 8}


def get_config(arm="hot2"):
  """Eight devices with an expert each; nothing is dropped and nothing balances."""
  moe = dict(dispatch=dict(name="fssdp", hot=ARMS[arm]), edits=[], balance=dict(switch=None))
  return merge(decoder.spread(), model=dict(moe=moe))
