"""bpe:VOCAB: byte-level BPE, trained on the train split and kept in the cache by its content."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moejax.core.plugin import Wrong
from moejax.data import caches, progress, subwords

EOS = "<|endoftext|>"


def train(texts, vocab: int) -> tokenizers.Tokenizer:
  """The 256 bytes, the end of a document and the most frequent merges, `vocab` ids at most."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=[EOS],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def load(argument, training, cache) -> subwords.Tokenizer:
  """The tokenizer of a corpus, trained if it is not in the cache."""
  if not argument.isdecimal() or not 257 <= int(argument) <= 1 << 20:
    raise Wrong(
      f"bpe: {argument!r} is no vocabulary size from 257 (bytes and end) to 1048576; "
      "write data.tokenizer=bpe:2048."
    )
  vocab = int(argument)

  def build(folder):
    texts = progress.track(training.texts(), training.count, f"training bpe:{vocab}")
    (folder / "tokenizer.json").write_text(train(texts, vocab).to_str(), encoding="utf-8")

  name = caches.key("bpe", training.fingerprint, vocab)
  folder = caches.prepare(cache / "tokenizers" / name, build)
  return subwords.Tokenizer(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), EOS)
