"""Experts for one kind of text and experts for all (2 CPU cores, half a minute a run).

Run:    python -m experiments.study moiie [--workers=2]
Expect: some experts of their own and some together are no worse than all together or none.

The two "modalities" are text of two kinds: packages of the standard library for the internet and
its markup, a tenth of the text, and everything else. They share a language and most of its words,
which images and text do not: a benefit from experts of their own is smaller here than there.
"""

from configs.base import decoder, merge

INTERNET = ("email", "html", "http", "urllib", "wsgiref", "xml", "xmlrpc")
OWN = {"moiie": (0.25, 0.25), "disjoint": (0.5, 0.5)}
ARMS = {
  "vanilla": dict(router=dict(name="topk", k=2), balance=dict(switch=dict(weight=1e-3))),
  **{
    arm: dict(
      router=dict(name="modality", k=2, own=own),
      balance=dict(switch=None, modality=dict(weight=1e-3)),
    )
    for arm, own in OWN.items()
  },
}


def get_config(arm="moiie"):
  """The brief recipe with one arm's router, on text of two kinds."""
  data = dict(modalities=(INTERNET,))
  return merge(decoder.brief(), model=dict(moe=ARMS[arm]), data=data)
