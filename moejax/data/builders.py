"""TFDS builders as documents: prepared as array_record, read at random, without TensorFlow."""

import contextlib
import io
import pathlib

import tensorflow_datasets as tfds

from moejax.core.plugin import Wrong
from moejax.data import caches, progress
from moejax.data.sources import Documents


def documents(builder, fingerprint: str, text: str, label: str | None) -> Documents:
  """The documents of a builder's train split, which is prepared if it is not yet."""
  folder = pathlib.Path(builder.data_path)
  if not folder.exists():
    with caches.locked(folder):
      if not folder.exists():
        _prepare(builder, folder)
  if not builder.info.splits:  # another process prepared it after this builder looked
    builder.info.read_from_directory(str(folder))
  split = "train" if "train" in builder.info.splits else min(builder.info.splits)
  source = builder.as_data_source(split=split)
  names = getattr(builder.info.features[label], "names", None) if label else None

  def read():
    for i in range(len(source)):
      item = source[i]
      value = item[label] if label else builder.name
      yield _string(item[text]), names[value] if names else _string(value)

  return Documents(fingerprint, read)


def _prepare(builder, folder):
  if not progress.terminal():
    tfds.disable_progress_bar()
  progress.tell(f"preparing {builder.name} in {folder}")
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS says the same, where a run has its say
      builder.download_and_prepare()
  except ModuleNotFoundError:
    raise
  except Exception as error:  # networks, servers and disks fail in many ways, TFDS in one place
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise Wrong(
      f"tfds: {builder.name} cannot be prepared in {folder}: {reason}; it takes space and, unless "
      "it is on this machine, a network; or copy that folder from where it is prepared."
    ) from error


def _string(value) -> str:
  return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
