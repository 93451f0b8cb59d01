"""Sources: the documents they find, and the sentence when they find none."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.data import builders
from moejax.data import text as corpora

TFDS = tensorflow_datasets.features


def _open(name, tmp_path, **fields):
  stem, _, argument = name.partition(":")
  cfg = corpora.Config(source=name, **fields)
  return plugin.load("data.sources", stem).open(argument, cfg, tmp_path)


def _texts(folder):
  return _open(f"text:{folder}", None)


# text:PATH ---------------------------------------------------------------------------------------


def test_a_folder_is_its_files_by_name_labelled_by_the_first_folder(tmp_path):
  top = tmp_path / "corpus"
  for name in ("b/deep/2.txt", "a/1.md", "3.txt", ".hidden/4.txt", "a/empty.txt"):
    path = top / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("" if "empty" in name else f"text of {name}\r\n")
  assert list(_texts(top).read()) == [
    ("text of 3.txt\r\n", "corpus"), ("text of a/1.md\r\n", "a"), ("text of b/deep/2.txt\r\n", "b")
  ]  # fmt: skip


def test_lines_of_jsonl_are_documents(tmp_path):
  lines = [{"text": "one\ntwo"}, {"text": "half \ud83d", "label": "news"}, {"text": " "}]
  path = tmp_path / "mix.jsonl"
  path.write_text("\n\n".join(map(json.dumps, lines)))
  assert list(_texts(path).read()) == [("one\ntwo", "mix"), ("half ?", "news")]


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', '{"txt": "a"}', '{"text": 3}'])
def test_a_wrong_line_of_jsonl_is_named(tmp_path, line):
  (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line)
  with pytest.raises(Wrong, match="line 2 of .*bad.jsonl is not an object with a text field"):
    list(_texts(tmp_path / "bad.jsonl").read())


def test_a_long_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
  chapters = [f"chapter {n} " + "word " * 700 + "\n" for n in range(20)]
  (tmp_path / "book.txt").write_text("\n".join(chapters))
  got = [text for text, _ in _texts(tmp_path / "book.txt").read()]
  assert "".join(got) == "\n".join(chapters) and len(got) == 4
  assert all(text.startswith("chapter") for text in got)
  (tmp_path / "line.txt").write_text("x" * 100_000)
  got = [text for text, _ in _texts(tmp_path / "line.txt").read()]
  assert [len(text) for text in got] == [32768, 32768, 32768, 1696]


def test_the_content_and_the_labels_are_the_fingerprint(tmp_path):
  prints = []
  for folder, name, content in [("a", "x", "one"), ("a", "x", "two"), ("b", "x", "one")]:
    path = tmp_path / folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    prints.append(_texts(path.parent).fingerprint)
  os.utime(tmp_path / "b" / "x", (1, 1))
  assert len(set(prints)) == 3 and _texts(tmp_path / "b").fingerprint == prints[2]


BAD = {
  "empty.txt": (b"", r"empty.txt holds no text \(1 files, 0 bytes\)"),
  "image.png": (b"\x89PNG\r\n", r"image.png \(6 bytes\) is not UTF-8 text; give a file of UTF-8"),
  "zero.bin": (b"ab\x00cd", r"zero.bin \(5 bytes\) is binary: byte 2 is zero"),
  "cut.txt": ("ab\u00e9".encode()[:-1], r"cut.txt \(3 bytes\) ends in the middle of a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_text_is_refused_with_its_size(tmp_path, name):
  content, match = BAD[name]
  (tmp_path / name).write_bytes(content)
  with pytest.raises(Wrong, match=match):
    _texts(tmp_path / name)


def test_paths_with_nothing_are_refused_and_binaries_in_a_folder_are_told(tmp_path, capsys):
  with pytest.raises(Wrong, match="there is nothing at '/no/such/path'; write data.source=text:"):
    _texts("/no/such/path")
  with pytest.raises(Wrong, match="there is nothing at"):
    _texts("")
  with pytest.raises(Wrong, match=r"holds no text \(0 files, 0 bytes\)"):
    _texts(tmp_path)
  (tmp_path / "picture").write_bytes(b"\xff\xd8")
  with pytest.raises(Wrong, match=r"holds no text \(1 files, 2 bytes\)"):
    _texts(tmp_path)
  (tmp_path / "word.txt").write_text("word")
  capsys.readouterr()
  assert [text for text, _ in _texts(tmp_path).read()] == ["word"]
  assert "1 files are left out, such as" in capsys.readouterr().err


# tfds:NAME ---------------------------------------------------------------------------------------


class MoejaxTinyNews(tensorflow_datasets.core.GeneratorBasedBuilder):
  """A dataset as others write them: two features of text, one class label."""

  VERSION = tensorflow_datasets.core.Version("1.0.0")

  def _info(self):
    label = TFDS.ClassLabel(names=["sport", "science"])
    features = TFDS.FeaturesDict({"title": TFDS.Text(), "body": TFDS.Text(), "topic": label})
    return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(range(8)), "test": self._generate_examples([99])}

  def _generate_examples(self, numbers):
    for n in numbers:
      yield n, {"title": f"title {n}", "body": f"body \u00e9 {n}", "topic": n % 2}


class MoejaxOffline(MoejaxTinyNews):
  """A dataset that is somewhere else."""

  def _split_generators(self, dl_manager):
    raise ConnectionError("Failed to resolve 'example.org'\nand more")


class MoejaxNeedy(MoejaxTinyNews):
  """A dataset that reads its files with another package."""

  def _split_generators(self, dl_manager):
    try:
      import a_package_that_is_not_there  # noqa: F401
    except ModuleNotFoundError as error:  # as TFDS does for the packages it knows
      raise ModuleNotFoundError(f"{error}\nFailed importing. This likely means...") from error


def test_a_dataset_of_tfds_by_its_name(tmp_path):
  documents = _open("tfds:moejax_tiny_news", tmp_path, text_feature="body")
  want = [(f"body \u00e9 {n}", ("sport", "science")[n % 2]) for n in range(8)]
  first = list(documents.read())
  assert sorted(first) == want and list(documents.read()) == first
  titles = _open("tfds:moejax_tiny_news", tmp_path, text_feature="title", label_feature="body")
  assert sorted(titles.read())[3] == ("title 3", "body \u00e9 3")
  assert titles.fingerprint != documents.fingerprint


def test_a_builder_sees_what_another_process_prepared_meanwhile(tmp_path):
  first, second = (
    MoejaxTinyNews(data_dir=str(tmp_path), file_format="array_record") for _ in range(2)
  )
  texts = [list(builders.documents(b, "", "body", "topic").read()) for b in (first, second)]
  assert len(texts[0]) == 8 and texts[0] == texts[1]


@pytest.mark.parametrize(
  "name, fields, match",
  [
    ("moejax_tiny_new", {}, "no dataset 'moejax_tiny_new'. Did you mean 'moejax_tiny_news'"),
    ("moejax_tiny_news", {}, "several candidates: body, title; set data.text_feature"),
    ("moejax_tiny_news", {"text_feature": "bdy"}, "'bdy' is unknown. Did you mean 'body'"),
    ("imdb", {}, "no dataset 'imdb'. Did you mean 'imdb_reviews'"),
    ("qqqqq", {}, r"no dataset 'qqqqq'. TFDS has [0-9]+; tensorflow_datasets.list_builders"),
    ("imdb_reviews/plain", {}, "'imdb_reviews/plain' is refused: Did you mean 'plain_text'"),
    ("imdb_reviews:9.9.9", {}, "cannot be loaded at version 9.9.9, only: 1.0.0. Write tfds:NAME"),
    ("", {}, "'' is refused: Parsing builder name string"),
    ("moejax_offline", {"text_feature": "body"}, "cannot be prepared .*resolve 'example.org'; it"),
    ("mnist", {}, "has no feature of text among image, label"),
  ],
)
def test_a_dataset_that_cannot_be_had_is_one_sentence(tmp_path, name, fields, match):
  with pytest.raises(Wrong, match=match):
    _open(f"tfds:{name}", tmp_path, **fields)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
  cfg = corpora.Config(source="tfds:moejax_needy", text_feature="body", cache=str(tmp_path))
  with pytest.raises(Wrong, match="'a_package_that_is_not_there' is missing; pip install a_pack"):
    corpora.open(cfg, 0)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  monkeypatch.delitem(sys.modules, "moejax.data.sources.tfds")
  with pytest.raises(Wrong, match="'tensorflow_datasets' is missing; pip install tensorflow-data"):
    corpora.open(cfg, 0)


# stdlib_text -------------------------------------------------------------------------------------

WHOLE = """
import json, sys
from moejax.data import text

cfg = text.Config(tokenizer="bytes", seq_len=4096, cache=sys.argv[1])
corpus = text.open(cfg, 0)
batch = next(corpus.batches("train", 2))
assert text.open(cfg, 0).fingerprint == corpus.fingerprint
print(json.dumps({
  **corpus.describe(), "imported": "tensorflow" in sys.modules,
  "text": corpus.tokenizer.decode(batch["token_BT"][0]),
}))
"""


def test_stdlib_text_is_prepared_and_read_without_tensorflow(tmp_path):
  fake = tmp_path / "fake" / "tensorflow"
  fake.mkdir(parents=True)
  (fake / "__init__.py").write_text("raise SystemExit('tensorflow was imported')")
  path = os.pathsep.join(filter(None, [str(fake.parent), os.environ.get("PYTHONPATH")]))
  done = subprocess.run(
    [sys.executable, "-c", WHOLE, str(tmp_path / "cache")],
    env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  about = json.loads(done.stdout)  # nothing but this on standard output
  assert not about["imported"]
  assert {"asyncio", "email", "json", "modules", "topics"} <= set(about["labels"])
  assert about["bytes"]["train"] > 3e6 and about["bytes"]["validation"] > 5e4
  assert about["documents"]["validation"] > 10 and len(about["text"]) > 3000
  (folder,) = (tmp_path / "cache" / "tfds").iterdir()
  assert folder.name.startswith(f"python-{sys.version_info.major}.{sys.version_info.minor}.")
  assert list(folder.rglob("*.array_record*"))


def test_stdlib_text_leaves_out_tests_tables_and_installed_packages():
  collected = plugin.load("data.sources", "stdlib_text").collect()
  names = {name: label for name, _, label in collected}
  assert len(names) == len(collected) and list(names) == [name for name, *_ in collected]
  assert names["ast.py"] == "modules" and names["asyncio/events.py"] == "asyncio"
  assert names["topics/lambda"] == "topics" and "pydoc_data/topics.py" not in names
  for name in names:
    assert not {"test", "tests", "site-packages"} & set(pathlib.PurePath(name).parts)
  assert "encodings/cp437.py" not in names and "encodings/utf_8.py" in names
