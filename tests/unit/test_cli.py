"""The verbs of `python -m moejax`: exit codes, sentences, and what is called."""

import json
import subprocess
import sys

import pytest

from moejax import cli
from moejax.core.plugin import Failed, Wrong


@pytest.fixture
def run(tmp_path):
  """run(name) -> a run directory with two lines."""

  def make(name):
    path = tmp_path / name
    path.mkdir()
    rows = [{"kind": "train", "step": s, "tokens": 10 * s, "loss": 3.0 - s} for s in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

  return make


def test_list_and_show_print_components(capsys):
  assert cli.main(["list", "routers"]) == 0
  assert "  topk" in capsys.readouterr().out
  assert cli.main(["list", "--markdown"]) == 0
  assert "| [topk](../moejax/routers/topk.py) | routers |" in capsys.readouterr().out
  assert cli.main(["show", "routers", "topk"]) == 0
  assert "k: int = 2" in capsys.readouterr().out


def test_report_writes_a_page_and_of_several_runs_a_comparison(run, tmp_path, capsys):
  one, two, out = run("one"), run("two"), tmp_path / "both.html"
  assert cli.main(["report", str(one)]) == 0
  assert capsys.readouterr().out == f"{one / 'report.html'}\n" and (one / "report.html").is_file()
  assert cli.main(["report", str(one), str(two), f"--out={out}"]) == 0
  assert capsys.readouterr().out == f"{out}\n" and out.is_file()


WRONG = {
  "verb": (["shw", "routers"], "there is no verb 'shw'. Did you mean 'show'?"),
  "family": (["list", "ruoters"], "there is no family 'ruoters'. Did you mean 'routers'?"),
  "name": (["show", "routers", "topq"], "routers has no 'topq'. Did you mean 'topk'?"),
  "folder": (["report", "no/such"], "report: no/such is no folder; give the folder of a run"),
}


@pytest.mark.parametrize("words, sentence", WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, sentence, capsys):
  assert cli.main(words) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith(f"error: {sentence}") and err.count("\n") == 1
  with pytest.raises(Wrong):
    cli.main([*words, "--debug"])


@pytest.mark.parametrize("words", [[], ["show", "routers"], ["list", "--colour"]])
def test_words_that_do_not_parse_exit_with_2(words, capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(words)
  assert end.value.code == 2 and "usage: python -m moejax" in capsys.readouterr().err


def test_a_failure_is_one_sentence_and_exit_code_1(monkeypatch, capsys):
  def fail(args):
    """fails"""
    raise Failed("it could not go on.")

  monkeypatch.setitem(cli.VERBS, "list", fail)
  assert cli.main(["list"]) == 1
  assert capsys.readouterr().err == "error: it could not go on.\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_a_help_text(verb, capsys):
  with pytest.raises(SystemExit) as end:
    cli.main([verb, "--help"])
  text = capsys.readouterr().out
  assert end.value.code == 0 and cli.VERBS[verb].__doc__ in " ".join(text.split())


def test_list_does_not_wait_for_jax():
  code = "import sys; from moejax import cli; cli.main(['list']); sys.exit('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0 and "routers" in done.stdout, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
  command = f"{sys.executable} -m moejax list | true; exit ${{PIPESTATUS[0]}}"
  done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
