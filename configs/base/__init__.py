"""The recipes that other configs start from, and the one way to change them."""

import ml_collections


def merge(base: ml_collections.ConfigDict, **changes) -> ml_collections.ConfigDict:
  """`base` with `changes` laid over it; a dict with a `name` replaces its whole section.

  >>> base = ml_collections.ConfigDict(dict(a=dict(x=1, y=2), b=dict(name="old", x=1)))
  >>> merge(base, a=dict(x=3), b=dict(name="new")).to_dict()
  {'a': {'x': 3, 'y': 2}, 'b': {'name': 'new'}}
  """
  out = ml_collections.ConfigDict(base.to_dict())
  for key, value in changes.items():
    old = out.get(key)
    nested = isinstance(value, dict) and "name" not in value
    out[key] = merge(old, **value) if nested and isinstance(old, type(out)) else value
  return out
