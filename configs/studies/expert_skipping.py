"""Second experts left out after training: none, those with small gates, all.

Run:    python -m experiments.study expert_skipping [--workers=2]
Expect: the choices with small gates cost less than their share of what all second choices cost. The
        knob skip_beta is 0 until the last two steps, so that the final evaluation alone skips.
"""

from configs.base import decoder, merge

ARMS = {"none": 0.0, "small": 0.5, "all": 1.0}  # beta: gates below beta times the first one


def get_config(arm="small"):
  """The brief recipe with an edit that skips, and one that makes up for what was skipped."""
  late = dict(name="piecewise", values=[0.0, ARMS[arm]], until=[0.99])
  edits = [dict(name="skip"), dict(name="renormalise")]
  return merge(decoder.brief(), model=dict(moe=dict(edits=edits)), knobs=dict(skip_beta=late))
