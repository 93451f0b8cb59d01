"""TFDS builders as documents: prepared as array_record, read at random, without TensorFlow."""

import pathlib

import tensorflow_datasets as tfds

from moejax.data import cache, progress
from moejax.data.sources import Documents


def documents(builder, text: str, label: str | None, fingerprint: str) -> Documents:
  """The documents of a builder's train split, which is prepared if it is not yet."""
  folder = pathlib.Path(builder.data_path)
  if not folder.exists():
    with cache.locked(folder), cache.writing(folder):
      tfds.disable_progress_bar()
      for _ in progress.track([builder], 1, f"preparing {builder.name}"):
        builder.download_and_prepare()
  source = builder.as_data_source(split="train")
  names = builder.info.features[label].names if label else [builder.name]

  def read():
    for i in range(len(source)):
      item = source[i]
      yield item[text].decode("utf-8", errors="replace"), names[item[label]] if label else names[0]

  return Documents(fingerprint, len(source), read)
