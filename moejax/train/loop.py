"""Training: stages, steps, evaluation, checkpoints. fit() is what `experiments.run` calls."""

import contextlib
import dataclasses
import itertools
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import config, dtypes
from moejax.core.plugin import Failed, Wrong
from moejax.data import text
from moejax.perf import flops as counts
from moejax.perf import hardware
from moejax.train import (
  checkpoint,
  display,
  evaluate,
  metrics,
  phase,
  rundir,
  sample,
  signals,
  stages,
)
from moejax.train import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: object
  train: object
  data: object
  optim: object
  precision: object
  stages: tuple = ()  # one stage of train.steps, if empty
  knobs: tuple = ()  # of (name, a number | one per layer | a schedule), read by routers
  mesh: str = ""  # "data:2,expert:4"; empty = all devices on data


class Result(typing.NamedTuple):
  workdir: str
  step: int
  finished: bool  # False: stopped by a signal, to be resumed
  metrics: dict  # of the last evaluation
  state: object  # of train/step.py
  model: object


def fit(cfg: Config, workdir, terminal: bool | None = None) -> Result:
  """Trains, evaluates, writes everything to `workdir`; called again, it goes on where it was."""
  corpus = text.open(cfg.data, cfg.train.seed)
  cfg = dataclasses.replace(cfg, model=sized(cfg.model, corpus.tokenizer))
  mesh = meshes.make(cfg.mesh)
  meshes.check(cfg, mesh)
  for split in ("train", "validation"):  # too little text is told before anything is compiled
    corpus.batches(split, cfg.train.batch_size).close()
  folder = rundir.RunDir(workdir, config.dump(cfg))
  try:
    with jax.set_mesh(mesh), contextlib.closing(folder), signals.Stop() as stop:
      return Run(cfg, folder, corpus, mesh, stop, terminal).train()
  except OSError as reason:
    raise Failed(
      f"the run could not write to {folder.path} ({reason.strerror or reason}); full checkpoints"
      " are intact. Free space, and run the same command again."
    ) from reason


def sized(model_cfg, tokenizer):
  """The model config with the vocabulary of the tokenizer, unless it has a larger one."""
  if model_cfg.vocab is None:
    return dataclasses.replace(model_cfg, vocab=tokenizer.vocab)
  if model_cfg.vocab < tokenizer.vocab:
    raise Wrong(
      f"model.vocab is {model_cfg.vocab}, and the tokenizer has {tokenizer.vocab} tokens; raise it,"
      " or set it to None to follow the tokenizer."
    )
  return model_cfg


def averaged(state) -> dict:
  """The variables that evaluation and sampling use: the averaged parameters, where there are."""
  return {"params": state.params if state.ema is None else state.ema, **state.model_state}


class Run:
  """One call of fit(): what all its stages share."""

  def __init__(self, cfg, folder, corpus, mesh, stop, terminal):
    self.cfg, self.folder, self.corpus, self.mesh, self.stop = cfg, folder, corpus, mesh, stop
    self.stages, self.ends = stages.listed(cfg), stages.ends(cfg)
    self.display = display.make(self.ends[-1], terminal)
    self.checkpoints = checkpoint.Checkpoints(folder.path / "checkpoints", cfg.train.keep)
    self.tokens, self.flops, self.before = 0, 0.0, 0.0  # of the whole run, also before a resume
    self.start, self.paused, self.last = time.perf_counter(), 0.0, {}
    self.lap = (self.start, 0, 0)

  def train(self) -> Result:
    """All stages that are left, then the end."""
    with contextlib.closing(self.checkpoints), self.display:
      at, state = self._resume() or self._begin()
      self._describe(at, state)
      finished = True
      for index in range(at.index, len(self.stages)):
        if index > at.index:
          at, state = self._enter(index, at, state)
        state, finished = self._stage(at, state)
        if not finished:
          break
      step = int(state.step)
      if finished:
        self._finish(at, state)
      else:
        line = f"stopped by {self.stop.name} at step {step}; the same command goes on from there."
        self.folder.say(line, self.display.line)
    return Result(str(self.folder.path), step, finished, self.last, state, at.model)

  # -- how a run starts ------------------------------------------------------------------------

  def _phase(self, index, cfg) -> phase.Phase:
    trainable = self.stages[index].trainable
    return phase.make(index, cfg, trainable, self.corpus, self.mesh, self.ends[-1])

  def _begin(self):
    """Stage 0 at step 0."""
    stage, cfg = self.stages[0], self.cfg
    if stage.transform is not None:
      raise Wrong(
        "stages[0].transform: there is no model before the first stage; move it to stages[1]."
      )
    cfg, _ = stages.changed(cfg, cfg.model, stage.changes)
    at = self._phase(0, cfg)
    state = at.start(jnp.zeros(phase.micro_batch(cfg), jnp.int32))
    self.folder.forget_after(-1, 0)
    self.folder.log("stage", stage=0, step=0, name="start")
    return at, state

  def _resume(self):
    """The newest checkpoint that can be read, or None."""
    for step, reason in self.checkpoints.damaged:
      self._say_damaged(step, reason)
    for step in self.checkpoints.steps():
      try:
        meta = self.checkpoints.meta(step)
      except Exception as reason:
        self._set_aside(step, reason)
        continue
      at = self._phase(meta["stage"], self._config_of(meta))
      try:
        found = self.checkpoints.restore(step, at.template)
      except Exception as reason:  # whatever a reader says of a file that is not whole
        self._set_aside(step, reason)
        continue
      if meta["data"] != self.corpus.fingerprint:
        raise Wrong(
          f"the text of this run has changed (fingerprint {meta['data']}, now"
          f" {self.corpus.fingerprint}); resume it with the same files, or use another --workdir."
        )
      scalar = lambda name, meta=meta: jnp.int32(meta[name])
      counts = {name: scalar(name) for name in ("step", "bad", "skipped")}
      counts = jax.device_put(counts, {k: getattr(at.template, k).sharding for k in counts})
      state = dataclasses.replace(at.template, **found, **counts)
      self.tokens, self.flops, self.before = meta["tokens"], meta["flops"], meta["time"]
      self.last = meta["evaluation"]
      self.folder.forget_after(step, meta["stage"])
      self.folder.log("resume", step=step)
      self.folder.say(f"resumed at step {step}", self.display.line)
      return at, state
    return None

  def _config_of(self, meta) -> Config:
    """The config of the stage a checkpoint is in; what may differ is that of today."""
    dumped, now = meta["config"], config.dump(self.cfg)
    for path in rundir.FREE:
      section, _, key = path.rpartition(".")
      (dumped[section] if section else dumped)[key] = (now[section] if section else now)[key]
    return config.resolve(dumped)

  def _set_aside(self, step, reason):
    self.checkpoints.set_aside(step, str(reason).splitlines()[0][:200])
    self._say_damaged(*self.checkpoints.damaged[-1])

  def _say_damaged(self, step, reason):
    line = (
      f"checkpoint {step} is damaged ({reason}); it was moved to damaged/{step} and is not used."
    )
    self.folder.say(line, self.display.line)

  def _enter(self, index, at: phase.Phase, state):
    """The state and the functions at the start of a later stage."""
    stage = self.stages[index]
    variables = {"params": state.params, **state.model_state}
    variables, model_cfg, follow = stages.enter(stage, variables, at.cfg.model, self.cfg.train.seed)
    cfg, model_cfg = stages.changed(at.cfg, model_cfg, stage.changes)
    new = self._phase(index, dataclasses.replace(cfg, model=model_cfg))
    how = {"old_cfg": at.cfg.model, "new_cfg": model_cfg, "follow": follow}
    state = stages.moved(state, variables, new.template, **how)
    self.folder.log("stage", stage=index, step=int(state.step), name=stages.title(stage))
    self.folder.say(f"stage {index}: {stages.title(stage)}", self.display.line)
    return new, state

  # -- the steps -------------------------------------------------------------------------------

  def _stage(self, at: phase.Phase, state):
    """(state, whether it ran to its end): the steps of one stage."""
    train, begin, end = at.cfg.train, int(state.step), self.ends[at.index]
    where = {"process": jax.process_index(), "processes": jax.process_count()}
    batches = self.corpus.batches("train", train.batch_size, first_step=begin, **where)
    self.flops_per_token = counts.train(at.cfg.model, at.cfg.data.seq_len)
    before = None
    for step in range(begin + 1, end + 1):
      batch = self._put(next(batches))
      if before is None:
        advance = self._compiled(at, state, batch)
        self._lap(step - 1)
      state, seen = advance(state, batch)
      if (
        before is not None and int(before["bad"]) >= train.bad_steps - 1
      ):  # waits for the step before
        self._check_finite(at, state, train)
      before = seen
      self.tokens += train.batch_size * at.cfg.data.seq_len
      self.flops += self.flops_per_token * train.batch_size * at.cfg.data.seq_len
      self.display.step(step)
      last = step == end
      if step % train.log_every == 0 or last or step == 1:
        self._log(at, state, seen, step)
      with self._pause():
        scores = None
        if step % train.eval_every == 0 or last:
          whole = step == self.ends[-1]
          scores = self._evaluate(at, state, step, None if whole else train.eval_batches)
        if step % train.checkpoint_every == 0 or last or self.stop.wanted:
          self._save(at, state, step, scores)
      if self.stop.wanted and step < self.ends[-1]:
        return state, False
    return state, True

  def _compiled(self, at, state, batch):
    """The step, compiled before the clock runs."""
    start = time.perf_counter()
    advance = at.step.lower(state, batch).compile()
    line = f"compiled the step in {time.perf_counter() - start:.1f} s"
    self.folder.say(line, self.display.line)
    return advance

  def _put(self, batch):
    """A batch on the devices, cut over the axes of tokens."""
    return {name: meshes.batch(rows, self.mesh) for name, rows in batch.items()}

  def _check_finite(self, at, state, train):
    """Stops after too many bad steps in a row; the state is still that of the last good one."""
    bad = int(state.bad)
    if bad >= train.bad_steps:
      step = int(state.step)
      good = {"bad": jnp.int32(0), "skipped": state.skipped - bad}  # as it was before them
      self._save(at, dataclasses.replace(state, **good), step - bad, None)
      raise Failed(
        f"the loss or its gradients were not finite in {bad} steps in a row ({step - bad + 1} to"
        f" {step}); the last good state, of step {step - bad}, is kept. Raise train.bad_steps to go"
        " on from there, or lower train.lr_peak or optim.clip_norm with another --workdir."
      )

  def _log(self, at, state, seen, step):
    """One line of metrics."""
    seen = jax.device_get(seen)
    seconds, steps_, tokens = self._lap(step)
    rate = tokens / seconds
    fields = {name: float(seen[name]) for name in ("loss", "balance", "lr", "grad_norm")}
    fields |= {"skipped": int(seen["skipped"]), "tokens": self.tokens, "flops": self.flops}
    fields |= {"tokens_per_s": round(rate, 1), "step_ms": round(1e3 * seconds / steps_, 2)}
    fields |= {"mfu": round(rate * self.flops_per_token / self.peak[1], 4), "time": self._time()}
    fields |= {"knobs": {k: np.asarray(v).tolist() for k, v in seen["knobs"].items()}}
    fields["layers"] = metrics.of_layers(seen["sums"], state.model_state, at.cfg.model)
    self.folder.log("train", stage=at.index, step=step, **fields)
    line = display.summary(step, self.ends[-1], fields)
    self.folder.say(line, self.display.summary)

  def _evaluate(self, at, state, step, batches: int | None) -> dict:
    """One evaluation on held-out documents, logged."""
    put = map(self._put, self._validation(at.cfg.train.batch_size, batches))
    found = evaluate.total(at.evaluate, averaged(state), put)
    if found is None:
      return {}
    self.last = evaluate.numbers(found)
    self.folder.log("eval", stage=at.index, step=step, **self.last)
    labels = self.corpus.labels
    if batches is None and len(labels) > 1 and metrics.moe_layers(at.cfg.model):
      self.folder.log("domains", step=step, **evaluate.domains(found, labels, at.cfg.model))
    self.folder.say(
      f"step {step}: held-out loss {self.last['loss']:.4f}, perplexity"
      f" {self.last['perplexity']:.2f}, {self.last['bits_per_byte']:.4f} bits per byte",
      self.display.line,
    )
    return self.last

  def _validation(self, batch_size, batches: int | None):
    """The first held-out batches, always the same; None = all."""
    where = {"process": jax.process_index(), "processes": jax.process_count()}
    return itertools.islice(self.corpus.batches("validation", batch_size, **where), batches)

  def _save(self, at, state, step, scores):
    meta = {
      "stage": at.index,
      "step": step,
      "bad": int(state.bad),
      "skipped": int(state.skipped),
      "tokens": self.tokens,
      "flops": self.flops,
      "time": self._time(),
      "data": self.corpus.fingerprint,
      "config": config.dump(at.cfg),
      "evaluation": self.last,
    }
    self.checkpoints.save(step, state, meta, scores["loss"] if scores else None)

  # -- the end ---------------------------------------------------------------------------------

  def _finish(self, at, state):
    """A sample, and the last line."""
    step = int(state.step)
    if self.folder.done():
      self.folder.say(f"this run is done: {step} steps in {self.folder.path}", self.display.line)
      return
    if at.cfg.train.sample_tokens:
      variables = averaged(state)
      what = (at.model, dtypes.filled(at.cfg.precision), variables, self.corpus.tokenizer)
      written = sample.write(*what, "import ", at.cfg.train.sample_tokens, at.cfg.data.seq_len)
      self.folder.write_text("sample.txt", written)
      self.folder.say(f"a sample:\n{written}", self.display.line)
    self.folder.log("done", step=step, time=self._time())

  # -- bookkeeping -----------------------------------------------------------------------------

  def _describe(self, at, state):
    """environment.json, and a first line."""
    self.flops_per_token = counts.train(at.cfg.model, at.cfg.data.seq_len)
    self.peak = hardware.peak(dtypes.filled(at.cfg.precision).compute)
    sizes = counts.params(at.cfg.model)
    about = rundir.environment()
    about |= {"peak": {"name": self.peak[0], "flops": self.peak[1]}, "parameters": sizes}
    about |= {"flops_per_token": self.flops_per_token, "data": self.corpus.describe()}
    about |= {"mesh": dict(self.mesh.shape)}
    self.folder.write_json("environment.json", about)
    for line in meshes.uncut(state.params, self.mesh):
      self.folder.say(line, self.display.line)
    self.folder.say(
      f"{sizes['total']:,} parameters, {sizes['active']:,} active for a token;"
      f" {self.flops_per_token / 1e6:.2f} MFLOP per token; peak {self.peak[0]}",
      self.display.line,
    )

  def _time(self) -> float:
    """Seconds since the start of the run, those before a resume included."""
    return round(self.before + time.perf_counter() - self.start, 3)

  @contextlib.contextmanager
  def _pause(self):
    """What happens inside does not count as time of steps."""
    start = time.perf_counter()
    yield
    self.paused += time.perf_counter() - start

  def _lap(self, step: int):
    """(seconds, steps, tokens) since the last call."""
    now = (time.perf_counter() - self.paused, step, self.tokens)
    before, self.lap = self.lap, now
    return tuple(b - a for a, b in zip(before, now, strict=True))
