"""The fields of a component's docstring, and the message when one is missing."""

import re


def of(module) -> dict[str, str]:
  """Field -> its text; several may share a line, three spaces apart."""
  word = r"(?:^|   )([A-Z][a-z]+(?: from the paper)?):\s+"
  found = re.split(word, module.__doc__ or "", flags=re.M)
  return {name: " ".join(text.split()) for name, text in zip(found[1::2], found[2::2], strict=True)}


def need(module, field: str) -> str:
  """The text of a field; the file to edit where there is none."""
  family, name = module.__name__.split(".")[1:]
  have = of(module)
  assert have.get(field), (
    f"moejax/{family}/{name}.py: its docstring has no line '{field}: ...'; it has {sorted(have)}."
  )
  return have[field]
