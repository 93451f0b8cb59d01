"""file:PATH: a tokenizer.json of the `tokenizers` package, as model releases carry it."""

import pathlib

import tokenizers

from moejax.core.plugin import Wrong
from moejax.data import subwords

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


def load(argument, training, cache) -> subwords.Tokenizer:
  """The tokenizer of a file."""
  del training, cache
  path = pathlib.Path(argument).expanduser()
  if not path.is_file():
    raise Wrong(f"file: {str(path)!r} is no file; write data.tokenizer=file:PATH/tokenizer.json.")
  try:
    inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
  except Exception as error:  # the package raises this very class
    raise Wrong(
      f"file: {path} ({path.stat().st_size:,} bytes) is no tokenizer.json: {error}; "
      "give a file that the tokenizers package has saved."
    ) from error
  for end in ENDS:
    if inner.token_to_id(end) is not None:
      return subwords.Tokenizer(inner, end)
  raise Wrong(
    f"file: {path} has no token that ends a document, none of {', '.join(ENDS)}; "
    "add one of them as a special token."
  )
