"""A router that is told what kind of text it routes (2 CPU cores, half a minute a run).

Run:    python -m experiments.study conditioned [--workers=2]
Expect: experts divide by what the router is told; what that does to the loss is the question.

The paper conditions an image model on the diffusion step and the class. Here the condition is the
kind of a document (four groups of packages, and the rest), a class as well, but one that the model
could also tell from the text; nothing here speaks of steps of a diffusion.
"""

from configs.base import decoder, merge

KINDS = (
  ("email", "html", "http", "urllib", "wsgiref", "xml", "xmlrpc"),
  ("asyncio", "concurrent", "multiprocessing"),
  ("ctypes", "encodings", "importlib"),
  ("json", "logging", "unittest"),
)
WIDTH = len(KINDS) + 1
ARMS = {
  "topk": dict(name="topk", k=2),
  "add": dict(name="conditioned", k=2, width=WIDTH, mode="add"),
  "modulate": dict(name="conditioned", k=2, width=WIDTH, mode="modulate"),
}


def get_config(arm="add"):
  """The brief recipe with one arm's router."""
  data = dict(modalities=KINDS, condition="modality")
  return merge(decoder.brief(), model=dict(moe=dict(router=ARMS[arm])), data=data)
