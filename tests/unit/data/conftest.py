"""A small library: folders of short real sentences, a cache that all tests of a session share."""

import random

import pytest

from moejax.data import text

WORDS = "a router sends tokens to experts and experts send back sums of what they learned".split()


@pytest.fixture(scope="session")
def library(tmp_path_factory):
  """Sixty documents in three folders, no two alike."""
  folder = tmp_path_factory.mktemp("library")
  for n in range(60):
    shelf = folder / ("poems", "notes", "mail")[n % 3]
    shelf.mkdir(exist_ok=True)
    words = random.Random(n).choices(WORDS, k=20 + n)
    (shelf / f"{n:02d}.txt").write_text(f"Nummer {n} \u2014 " + " ".join(words) + "\n")
  return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def open_library(library, cache):
  """open_library(seed, **fields of data)."""

  def make(seed=0, **fields):
    section = {"source": f"text:{library}", "seq_len": 32, "tokenizer": "bytes", "validation": 0.2}
    return text.open(text.Config(**{**section, "cache": str(cache), **fields}), seed)

  return make
