"""A dispatch in chunks, other numbers forward and backward (8 virtual CPU devices).

Run:    python -m experiments.study chunked [--workers=2]
Expect: the same loss for all numbers, and other best numbers forward and backward for most layers
        under a model of the cost. What a chunk saves on links is not measured here.
"""

from configs.base import decoder, merge

ARMS = {"whole": (1, 1), "even": (2, 2), "backward": (2, 4), "forward": (4, 1)}


def get_config(arm="backward"):
  """all_to_all over eight devices with an expert each, in chunks."""
  forward, backward = ARMS[arm]
  chunks = dict(transport=dict(name="all_to_all"), forward=forward, backward=backward)
  return merge(decoder.spread(), model=dict(moe=dict(dispatch=dict(name="chunked", **chunks))))
