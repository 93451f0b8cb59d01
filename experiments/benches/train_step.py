"""A training step of moejax, of its dense twin, and of the same model in transformers.

Forward, backward, clipping and AdamW on 8 x 256 random tokens, float32. `moe` and `dense` are
moejax.models.decoder through the step that moejax.train compiles for a run; `dense` has one FFN of
K times the width, so equal active FLOPs. `hf` is Qwen3-MoE in transformers as it comes (extra [hf];
left out with a word where it is not installed). Each lives in a process of its own; they work in
turns, a few steps each, of which the first is not counted.

--shapes=A,B   A: E=32 K=4 F=256; B: E=128 K=8 F=128; both D=256, 4 layers, vocabulary 4096
--who=moe,dense,hf
--rounds=6     turns of each
--steps=4      steps in a turn
--devices=1    virtual CPU devices of the moejax processes: `dense` cuts its tokens over them, `moe`
               its experts too
--precision=float32   of moejax's computation
--profile=     write a trace of the last turn of `moe` to this folder
"""

import importlib
import json
import statistics
import subprocess
import sys
import time
import typing

from moejax.core import plugin
from moejax.core.plugin import Failed, Wrong

OPTIONS = {
  "shapes": "A,B", "who": "moe,dense,hf", "rounds": 6, "steps": 4, "devices": 1,
  "precision": "float32", "profile": "",
}  # fmt: skip
BETTER = {"of hf": "higher", "of dense": "higher"}
SHAPES = {
  "A": {"experts": 32, "k": 4, "hidden": 256},
  "B": {"experts": 128, "k": 8, "hidden": 128},
  "tiny": {"experts": 4, "k": 2, "hidden": 16},  # to see that everything runs
}
B, T, D, LAYERS, VOCAB, HEADS, KV_HEADS, HEAD_WIDTH = 8, 256, 256, 4, 4096, 8, 4, 32


def run(options: dict):
  """One row per shape."""
  for given, known, kind in (("shapes", SHAPES, "shape "), ("who", ("moe", "dense", "hf"), "")):
    for word in options[given].split(","):
      if word not in known:
        raise Wrong(f"bench train_step: no {kind}{word!r}. {plugin.hint(word, known)}")
  for shape in options["shapes"].split(","):
    yield measure(shape, options)


def measure(name: str, options: dict) -> dict:
  """Medians over the turns of one shape, and what they mean."""
  workers = {who: Worker(who, name, options) for who in options["who"].split(",")}
  try:
    about = {who: worker.answer() for who, worker in workers.items()}
    for who, reason in [(who, said["missing"]) for who, said in about.items() if "missing" in said]:
      print(f"{who} is left out: {reason}", file=sys.stderr)
      workers.pop(who).close()
    times = {who: [] for who in workers}
    for _ in range(options["rounds"]):
      for who, worker in workers.items():
        times[who] += worker.ask(options["steps"])[1:]
  finally:
    for worker in workers.values():
      worker.close()
  row = {"case": name, **{f"{who} ms": round(statistics.median(t), 1) for who, t in times.items()}}
  for who in times:
    row[f"{who} tok/s"] = round(1e3 * B * T / row[f"{who} ms"])
  for other in [who for who in ("hf", "dense") if {who, "moe"} <= set(times)]:
    row[f"of {other}"] = round(row[f"{other} ms"] / row["moe ms"], 2)
  return row


class Worker:
  """A process that trains, and is told when."""

  def __init__(self, who: str, shape: str, options: dict):
    command = [sys.executable, "-m", "experiments.benches.train_step", who, shape]
    command += [str(options[key]) for key in ("devices", "precision", "allocator", "profile")]
    self.name = who
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

  def answer(self):
    """Its next line."""
    line = typing.cast(typing.IO, self.process.stdout).readline()
    if not line:
      raise Failed(f"bench train_step: the worker {self.name!r} ended; its error is above.")
    return json.loads(line)

  def ask(self, steps: int) -> list[float]:
    """Milliseconds of so many steps."""
    pipe = typing.cast(typing.IO, self.process.stdin)
    pipe.write(f"{steps}\n")
    pipe.flush()
    return self.answer()

  def close(self):
    """The end of its input ends it."""
    typing.cast(typing.IO, self.process.stdin).close()
    self.process.wait()
    typing.cast(typing.IO, self.process.stdout).close()


def work(who, shape, devices, precision, allocator, profile):
  """A worker: builds, warms up, says so, then runs as many steps as each line of input asks for."""
  try:
    how = (int(devices), precision, allocator)
    step = hf(SHAPES[shape]) if who == "hf" else ours(who, SHAPES[shape], *how)
  except ImportError as reason:
    print(json.dumps({"missing": f"{reason}; pip install 'moejax[hf]'"}), flush=True)
    return
  step()
  print(json.dumps({"ready": who}), flush=True)
  for line in sys.stdin:
    times = []
    for _ in range(int(line)):
      start = time.perf_counter()
      step()
      times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps(times), flush=True)
  if profile and who == "moe":
    import jax  # noqa: PLC0415

    with jax.profiler.trace(profile):
      step()


def ours(who, shape, devices, precision, allocator):
  """One step of moejax, as a function that waits for its end."""
  from experiments import runtime  # noqa: PLC0415

  runtime.prepare(allocator=allocator == "tuned", devices=devices)
  import types  # noqa: PLC0415

  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from moejax.core import config  # noqa: PLC0415
  from moejax.train import mesh as meshes  # noqa: PLC0415
  from moejax.train import phase  # noqa: PLC0415

  cfg = config.resolve(section(who, shape, precision, devices))
  mesh = meshes.make(cfg.mesh)
  tokenizer = types.SimpleNamespace(bytes_V=np.ones(VOCAB, np.int32))
  corpus = types.SimpleNamespace(tokenizer=tokenizer, labels=("all",), modalities=0)
  with meshes.entered(mesh, cfg.roles):
    at = phase.make(0, cfg, None, corpus, mesh)
    state = at.start(np.zeros(phase.micro_batch(cfg), np.int32))
  rng, kept = np.random.default_rng(0), {"state": state}
  batch = {
    "token_BT": rng.integers(0, VOCAB, (B, T + 1), np.int32),
    "segment_BT": np.ones((B, T + 1), np.int32),
    "label_BT": np.zeros((B, T + 1), np.int32),
  }
  batch = {name: meshes.batch(rows, mesh) for name, rows in batch.items()}

  def step():
    with meshes.entered(mesh, cfg.roles):
      kept["state"], metrics = at.step(kept["state"], batch)
      float(metrics["loss"])
      jax.block_until_ready(kept["state"])

  return step


def section(who, shape, precision, devices=1) -> dict:
  """The run's config."""
  owners = devices if who == "moe" else 1
  dispatch = "sort" if owners == 1 else "all_gather"
  layer = {"ffn": "moe" if who == "moe" else "mlp"}
  return {
    "model": {
      "vocab": VOCAB, "width": D, "tied": False, "layers": [layer] * LAYERS, "unroll": LAYERS,
      "attention": {
        "heads": HEADS, "kv_heads": KV_HEADS, "head_width": HEAD_WIDTH, "qk_norm": "head",
      },
      "mlp": {"hidden": shape["k"] * shape["hidden"]},
      "moe": {
        "num_experts": shape["experts"], "hidden": shape["hidden"],
        "router": {"name": "topk", "k": shape["k"]}, "dispatch": {"name": dispatch},
      },
    },
    "data": {"seq_len": T},
    "mesh": f"expert:{owners}" if owners > 1 else "",
    "train": {"batch_size": B, "lr_peak": 1e-4, "schedule": {"name": "constant"}},
    "precision": {"compute": precision},
  }  # fmt: skip


def hf(shape):
  """One step of transformers, as it comes."""
  torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))

  torch.manual_seed(0)
  model = transformers.Qwen3MoeForCausalLM(
    transformers.Qwen3MoeConfig(
      vocab_size=VOCAB,
      hidden_size=D,
      num_hidden_layers=LAYERS,
      num_attention_heads=HEADS,
      num_key_value_heads=KV_HEADS,
      head_dim=HEAD_WIDTH,
      num_experts=shape["experts"],
      num_experts_per_tok=shape["k"],
      moe_intermediate_size=shape["hidden"],
      norm_topk_prob=True,
      decoder_sparse_step=1,
      mlp_only_layers=[],
      tie_word_embeddings=False,
      use_cache=False,
    )
  ).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
  token_BT = torch.randint(0, VOCAB, (B, T))

  def step():
    model(input_ids=token_BT, labels=token_BT).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


if __name__ == "__main__":
  work(*sys.argv[1:])
