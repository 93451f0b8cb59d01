"""stdlib_text: the Python standard library's own sources and help topics, on every machine.

A document is one file or one help topic. Its label is the top-level package; modules that are a
single file share the label `modules`. Tests, installed packages and generated tables are left out.
Another Python has other text: its version and a hash of the content name the prepared data.
"""

import importlib
import os
import pathlib
import platform
import sysconfig

import tensorflow_datasets as tfds

from moejax.core.plugin import Wrong
from moejax.data import builders, caches
from moejax.data.sources import Documents

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__phello__"}
TOPICS = "pydoc_data/topics.py"  # one big dict: its entries are documents, the file is not


def collect() -> list[tuple[str, str, str]]:
  """(name, text, label) of every document, by name."""
  top = pathlib.Path(sysconfig.get_path("stdlib"))
  found = []
  for path in _files(top):
    parts = path.relative_to(top).parts
    name = "/".join(parts)
    if name == TOPICS:
      topics = importlib.import_module("pydoc_data.topics").topics
      found += [(f"topics/{key}", topics[key].strip(), "topics") for key in sorted(topics)]
      continue
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text and "decoding_table" not in text:  # not the character maps of old encodings
      found.append((name, text, parts[0] if len(parts) > 1 else "modules"))
  if not found:
    raise Wrong(
      f"stdlib_text: no Python sources lie under {top}; "
      "use a Python that has them, or data.source=text:PATH."
    )
  return found


def _files(top):
  """The .py files to read, by name; installed packages are not even walked through."""
  found = []
  for folder, folders, files in os.walk(top):
    folders[:] = [
      name for name in folders if name not in SKIPPED and not name.startswith("config-")
    ]
    found += [pathlib.Path(folder, name) for name in files if name.endswith(".py")]
  return sorted(path for path in found if not path.name.startswith("_sysconfigdata"))


class StdlibText(tfds.core.GeneratorBasedBuilder):
  """The documents of one Python installation."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, documents: list[tuple[str, str, str]], **kwargs):
    self._documents = documents
    super().__init__(**kwargs)

  def _info(self):
    features = {
      "name": tfds.features.Text(),
      "text": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=sorted({label for *_, label in self._documents})),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="The Python standard library's own sources and help topics.",
      features=tfds.features.FeaturesDict(features),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for name, text, label in self._documents:
      yield name, {"name": name, "text": text, "label": label}


def open(argument, cfg, cache) -> Documents:
  """The documents of the running Python."""
  del cfg
  if argument:
    raise Wrong(f"stdlib_text: it takes no argument, got {argument!r}; write just stdlib_text.")
  documents = collect()
  content = f"python-{platform.python_version()}-{caches.key(documents)}"
  builder = StdlibText(
    documents, data_dir=str(cache / "tfds" / content), file_format="array_record"
  )
  return builders.documents(builder, content, "text", "label")
