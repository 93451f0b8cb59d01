"""What a user can get wrong, through the command line: one clear sentence and exit code 2."""

import signal
import sys

import pytest

from experiments import command, run
from moejax.core import config, flags
from moejax.train import rundir

CONFIG = """
def get_config():
  return dict(
    model=dict(
      width=8,
      attention=dict(heads=2, kv_heads=1),
      moe=dict(num_experts=4, hidden=8, router=dict(name="topk", k=2)),
      layers=[dict(ffn="moe")],
    ),
    data=dict(source="text:{files}/text", tokenizer="bytes", seq_len=16, cache="{files}/cache"),
    train=dict(steps=2, batch_size=4),
    mesh="data:1",
  )
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A config file, and texts of several kinds, in one folder."""
  folder = tmp_path_factory.mktemp("files")
  (folder / "text").mkdir()
  for i in range(12):
    (folder / "text" / f"{i}.txt").write_text(f"words of text {i}, and then some more. " * 20)
  (folder / "empty.txt").write_text("")
  (folder / "binary.txt").write_bytes(bytes(range(256)) * 8)
  (folder / "config.py").write_text(CONFIG.format(files=folder))
  return folder


@pytest.fixture
def error(files, tmp_path, capsys):
  """error(*words) -> what the command says on stderr; it must end with exit code 2."""
  handler = signal.getsignal(signal.SIGTERM)

  def said(*words, workdir=tmp_path / "run"):
    words = [word.format(files=files) for word in words]
    start = [f"--config={files}/config.py", f"--workdir={workdir}", "--allocator=system"]
    assert command.guard(run.main, [*start, *words]) == 2
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in err
    assert len(last) < 600
    return last

  yield said
  signal.signal(signal.SIGTERM, handler)


MISTAKES = {
  "key": (["train.lr_peek=1.0"], "no field 'lr_peek'. Did you mean 'lr_peak'?"),
  "section": (["modle.width=8"], "no field 'modle'. Did you mean 'model'?"),
  "component": (["model.moe.router.name=topq"], "routers has no 'topq'. Did you mean 'topk'?"),
  "type": (["train.steps=ten"], "train.steps: 'ten' is not a valid int"),
  "nan rate": (["train.lr_peak=nan"], "train.lr_peak: 'nan' is not a valid float"),
  "infinite rate": (["train.lr_peak=1e999"], "train.lr_peak: inf is not a valid float"),
  "k above E": (["model.moe.router.k=5"], "cannot choose k=5 of 4 experts"),
  "width and heads": (["model.width=9"], "a width of 9 is not divisible by 2 heads"),
  "capacity": (
    ["model.moe.edits=[{{'name': 'capacity', 'factor': 0.0}}]"],
    "factor 0.0 leaves every expert with less than one slot",
  ),
  "long sequence": (["data.seq_len=16384"], "a sequence needs data.seq_len + 1 = 16385"),
  "warm-up": (["train.schedule.warmup_steps=9"], "9 warmup_steps do not fit in a run of 2 steps"),
  "one document": (["data.source=text:{files}/text/0.txt"], "the validation split has 0 tokens"),
  "large batch": (["train.batch_size=4000"], "sequences of 16 tokens and a batch needs 4000"),
  "empty text": (
    ["data.source=text:{files}/empty.txt"],
    "empty.txt holds no text (1 files, 0 bytes)",
  ),
  "binary text": (["data.source=text:{files}/binary.txt"], "binary.txt"),
  "no text": (["data.source=text:{files}/none.txt"], "there is nothing at"),
  "no dataset": (["data.source=tfds:imdb_reveiws"], "Did you mean 'imdb_reviews'"),
  "mesh axis": (["mesh=expart:2"], "mesh: there is no axis 'expart'. Did you mean 'expert'?"),
  "devices": (["mesh=data:4096"], "asks for 4096 devices and there are"),
  "experts on the mesh": (
    ["mesh=expert:3", "train.batch_size=6"],
    "4 experts cannot be cut over expert:3",
  ),
  "rows on the mesh": (["mesh=data:3"], "micro-batches of 4 rows"),
  "rule": (["optim.rules=[{{'match': 'rooter'}}]"], "no parameter matches 'rooter'"),
  "frozen": (["stages=[{{'steps': 2, 'trainable': 'Q'}}]"], "no parameter matches 'Q'"),
  "bf16 router": (["precision.router=bfloat16"], "routing flips"),
}


@pytest.mark.parametrize("changes, sentence", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(error, changes, sentence):
  assert sentence in error(*(f"--config.{change}" for change in changes))


def test_a_word_that_is_no_override(error):
  assert "'--config,train.steps=3' is no override" in error("--config,train.steps=3")
  assert "--workdri is no option here. Did you mean '--workdir'?" in error("--workdri=runs/one")


def test_a_missing_package_is_named_with_its_command(error, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  monkeypatch.delitem(sys.modules, "moejax.data.sources.tfds", raising=False)
  said = error("--config.data.source=tfds:imdb_reviews")
  assert "'tensorflow_datasets' is missing; pip install tensorflow-datasets" in said


def test_a_workdir_that_cannot_be_written_to(error, files):
  assert "cannot be written to" in error(workdir=files / "empty.txt" / "run")


def test_a_workdir_of_another_config_names_the_keys(error, files, tmp_path):
  cfg = config.resolve(flags.parse([f"--config={files}/config.py", "--config.model.vocab=257"]))
  rundir.RunDir(tmp_path / "run", config.dump(cfg)).close()
  (tmp_path / "run" / "metrics.jsonl").write_text("")
  said = error("--config.train.steps=5", "--config.model.vocab=257")
  assert "holds a run of another config (1 keys differ: train.steps: 2 -> 5); use the old" in said
