"""Text as batches: a source of documents, a tokenizer, packed windows, rows by step.

Row i of training is a pure function of (seed, i), and batch s holds the rows s*B .. s*B+B-1
whatever the number of processes: the step alone says where in its data a run is.
"""

import dataclasses
import typing
from typing import Literal

import grain

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.data import caches, kinds, packing, prepare
from moejax.data.tokenizers import Training

PREFETCH = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)  # batches, off the main thread
PIP = {"tensorflow_datasets": "tensorflow-datasets", "array_record": "array-record"}


@dataclasses.dataclass(frozen=True)
class Config:
  source: str = "stdlib_text"
  seq_len: int = 256
  tokenizer: str = "bpe:2048"
  validation: float = 0.05  # share of the documents held out, chosen by the hash of their text
  cache: str | None = None  # a folder; None: $MOEJAX_CACHE, else ~/.cache/moejax
  text_feature: str | None = None  # tfds: which feature is the text; None: the only one there is
  label_feature: str | None = None  # tfds: which feature is the domain; None: the only class label
  modalities: tuple = ()  # lists of labels, for routers that read the modality (data/kinds.py)
  condition: Literal["none", "modality"] = "none"  # what routers that read a condition are told

  def __post_init__(self):
    if self.seq_len < 1:
      raise Wrong(f"data.seq_len is {self.seq_len}; it must be at least 1.")
    if not 0 <= self.validation < 1:
      raise Wrong(f"data.validation is {self.validation}; it must be at least 0 and below 1.")
    if self.condition != "none" and not self.modalities:
      raise Wrong(
        f"data.condition is {self.condition!r} and there are no modalities; list labels in"
        " data.modalities, or set the condition to 'none'."
      )


class Corpus:
  """A prepared corpus."""

  def __init__(self, tokenizer, folder, about: dict, cfg: Config, seed: int):
    self.tokenizer = tokenizer
    self.labels = tuple(about["labels"])
    self.fingerprint = about["fingerprint"]
    self._folder, self._about, self._T, self._seed = folder, about, cfg.seq_len, seed
    self._cfg, self._modality_Y = cfg, kinds.table(cfg.modalities, self.labels)

  def num_tokens(self, split: str) -> int:
    """How many tokens a split has, the ends of documents included."""
    return self._about["tokens"][_known(split)]

  def describe(self) -> dict:
    """What the corpus is, for a report."""
    return dict(self._about)

  @property
  def modalities(self) -> int:
    """How many kinds of text the config tells apart, 0 where it says nothing of them."""
    return int(self._modality_Y.max()) + 1 if self._cfg.modalities else 0

  def kinds(self, label_BT) -> dict:
    """What a batch says of tokens with these labels, {} where the config has no modalities."""
    if not self._cfg.modalities:
      return {}
    return kinds.of(label_BT, self._modality_Y, self._cfg.condition)

  def batches(self, split, batch_size, first_step=0, process=0, processes=1, epochs=None):
    """The rows of one process in the batches from `first_step` on; close() ends the reading.

    Training goes on for ever, every epoch in another order, unless `epochs` is given. Validation
    is read once, in a fixed order. What ends, ends with rows of padding.
    """
    windows = self._windows(_known(split))
    if batch_size < 1 or batch_size % processes:
      raise Wrong(
        f"data: a batch of {batch_size} rows cannot be shared by {processes} processes; "
        "make train.batch_size a multiple of their number."
      )
    if split == "train":
      if len(windows) < batch_size:
        raise Wrong(
          f"data: the train split has {len(windows)} sequences of {self._T} tokens and a batch "
          f"needs {batch_size}; lower train.batch_size or data.seq_len, or give more text."
        )
      windows = windows.seed(self._seed).shuffle().repeat(epochs)
    T, size, local = self._T, len(windows), batch_size // processes

    def batch(step):
      first = step * batch_size + process * local
      rows = range(first, first + local)
      found = packing.unpack([windows[i] if i < size else None for i in rows], T)
      return found | self.kinds(found["label_BT"])

    steps = grain.MapDataset.source(range(first_step, -(-size // batch_size)))
    return iter(steps.map(batch).to_iter_dataset(PREFETCH))

  def _windows(self, split):
    if self.num_tokens(split) < 2:
      raise Wrong(
        f"data: the {split} split has {self.num_tokens(split)} tokens; give two documents or more, "
        "or change data.validation."
      )
    source = grain.sources.ArrayRecordDataSource(str(self._folder / f"{split}.array_record"))
    return grain.MapDataset.source(typing.cast(typing.Any, source))


def open(cfg: Config, seed: int) -> Corpus:
  """The corpus of a config, prepared if it is not in the cache."""
  if not 0 <= seed < 2**32:
    raise Wrong(f"data: the seed {seed} is not from 0 to {2**32 - 1}; change train.seed.")
  cache = caches.root(cfg.cache)
  name, _, argument = cfg.source.partition(":")
  try:
    documents = plugin.load("data.sources", name).open(argument, cfg, cache)
  except ModuleNotFoundError as error:
    # TFDS rewords the error of a dataset's own package, and the name is left in the sentence only.
    package = (error.name or str(error).split("'")[1]).partition(".")[0]
    raise Wrong(
      f"data.source {cfg.source}: the package {package!r} is missing; "
      f"pip install {PIP.get(package, package)}"
    ) from error
  known = prepare.index(cache, documents, cfg.source)
  tokenizer = _tokenizer(cfg, documents, known, cache)
  what = f"{cfg.source} with {cfg.tokenizer}"
  tokens = prepare.tokens(cache, documents, known, tokenizer, what)
  folder, about = prepare.windows(cache, known, tokens, cfg, seed)
  return Corpus(tokenizer, folder, about, cfg, seed)


def _tokenizer(cfg, documents, known, cache):
  """The tokenizer of a config; one that learns sees training documents only."""
  name, _, argument = cfg.tokenizer.partition(":")
  out_D = known.held_out(cfg.validation)
  seen = lambda: (text for (text, _), out in zip(documents.read(), out_D, strict=True) if not out)
  training = Training(caches.key(known.name, cfg.validation), seen, int((~out_D).sum()))
  return plugin.load("data.tokenizers", name).load(argument, training, cache)


def _known(split):
  if split not in prepare.SPLITS:
    raise Wrong(f"data has no split {split!r}. {plugin.hint(split, prepare.SPLITS)}")
  return split
