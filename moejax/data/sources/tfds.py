"""tfds:NAME: any text dataset of TensorFlow Datasets, as array_record files, without TensorFlow.

NAME is TFDS's own (`name`, `name/config`, `name:version`). Documents are the split `train`; which
feature is the text and which the domain is found, or said by data.text_feature, data.label_feature.
"""

import difflib
import re
import typing

import tensorflow_datasets

from moejax.core.plugin import Wrong, hint
from moejax.data import builders, caches
from moejax.data.sources import Documents


def open(argument, cfg, cache) -> Documents:
  """The documents of a TFDS dataset, which is downloaded and prepared if it is not yet."""
  builder = _builder(argument, cache)
  kinds = tensorflow_datasets.features
  features = typing.cast(dict, builder.info.features)  # a FeaturesDict in every dataset of texts
  texts = [name for name, kind in features.items() if isinstance(kind, kinds.Text)]
  labels = [name for name, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
  preferred = ["text"] if "text" in texts else texts
  text = _feature(argument, "text_feature", cfg.text_feature, preferred, texts)
  if text is None:
    raise Wrong(
      f"tfds:{argument} has no feature of text among {', '.join(features)}; choose another dataset."
    )
  label = _feature(argument, "label_feature", cfg.label_feature, labels, labels + texts)
  name = caches.key("tfds", builder.info.full_name, text, label)
  return builders.documents(builder, name, text, label)


def _builder(name, cache):
  folder = str(cache / "tfds")
  try:
    return tensorflow_datasets.builder(name, data_dir=folder, file_format="array_record")
  except ModuleNotFoundError:
    raise
  except tensorflow_datasets.core.DatasetNotFoundError as error:
    raise Wrong(f"tfds: there is no dataset {name!r}. {_meant(name)}") from error
  except Exception as error:  # a config, a version or a spelling; names with a namespace use a net
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition('}": ')[2]
    stem, _, config = name.partition("/")
    if config and stem in tensorflow_datasets.list_builders(with_community_datasets=False):
      reason = hint(config, tensorflow_datasets.builder_cls(stem).builder_configs)
    raise Wrong(f"tfds: {name!r} is refused: {reason} Write tfds:NAME[/CONFIG].") from error


def _meant(name):
  """The names most like a wrong one, out of some hundreds."""
  word = re.split("[/:]", name.lower())[0]
  known = sorted(set(tensorflow_datasets.list_builders(with_community_datasets=False)))
  alike = [other for other in known if word in other][:5] or difflib.get_close_matches(word, known)
  if alike:
    return f"Did you mean {' or '.join(map(repr, alike))}?"
  return f"TFDS has {len(known)}; tensorflow_datasets.list_builders() lists them."


def _feature(dataset, field, wanted, candidates, allowed):
  """The feature a config asks for, else the only candidate, else None where there is none."""
  if wanted is not None:
    if wanted not in allowed:
      raise Wrong(f"tfds:{dataset}: data.{field} {wanted!r} is unknown. {hint(wanted, allowed)}")
    return wanted
  if len(candidates) > 1:
    several = ", ".join(sorted(candidates))
    raise Wrong(f"tfds:{dataset} has several candidates: {several}; set data.{field} to one.")
  return candidates[0] if candidates else None
