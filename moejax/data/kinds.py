"""What is known of a token besides its text: its modality, and a condition for routers to read.

Text has labels, and a modality is a group of them: `data.modalities` lists the labels of modality
0, of 1, and so on; the labels of no list are one more. The condition is the modality, one-hot.
"""

import numpy as np

from moejax.core import plugin
from moejax.core.plugin import Wrong


def table(lists: tuple, labels: tuple) -> np.ndarray:
  """The modality of every label.

  >>> table((("poems",), ("notes",)), ("mail", "notes", "poems")).tolist()
  [2, 1, 0]
  """
  modality_Y = np.full(len(labels), len(lists), np.int32)
  for i, names in enumerate(lists):
    if isinstance(names, str) or not names:
      raise Wrong(f"data.modalities[{i}]: {names!r} is not a list of labels; write ['LABEL', ...].")
    for name in names:
      if name not in labels:
        raise Wrong(
          f"data.modalities[{i}]: no document is labelled {name!r}. {plugin.hint(name, labels)}"
        )
      if modality_Y[labels.index(name)] < len(lists):
        raise Wrong(f"data.modalities[{i}]: {name!r} is listed twice; leave it in one list.")
      modality_Y[labels.index(name)] = i
  return modality_Y


def of(label_BT: np.ndarray, modality_Y: np.ndarray, condition: str) -> dict[str, np.ndarray]:
  """modality_BT of labels, and cond_BTC where it is the condition.

  >>> found = of(np.array([[0, 1]]), np.array([1, 0]), "modality")
  >>> found["modality_BT"].tolist(), found["cond_BTC"].tolist()
  ([[1, 0]], [[[0.0, 1.0], [1.0, 0.0]]])
  """
  found = {"modality_BT": modality_Y[label_BT]}
  if condition == "modality":
    one_hot_YC = np.eye(modality_Y.max() + 1, dtype=np.float32)
    found["cond_BTC"] = one_hot_YC[found["modality_BT"]]
  return found
