"""Training: stages, steps, evaluation, checkpoints. fit() is what `experiments.run` calls."""

import contextlib
import dataclasses
import itertools
import time
import typing

import jax
import jax.numpy as jnp

from moejax.core import axes, config
from moejax.core.plugin import Failed, Wrong
from moejax.data import text
from moejax.train import (
  checkpoint,
  evaluate,
  migration,
  phase,
  processes,
  record,
  restore,
  rundir,
  sample,
  signals,
  stages,
  tracing,
)
from moejax.train import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: typing.Any
  train: typing.Any
  data: typing.Any
  optim: typing.Any
  precision: typing.Any
  stages: tuple = ()  # one stage of train.steps, if empty
  knobs: tuple = ()  # of (name, a number | one per layer | a schedule), read by routers
  mesh: str = ""  # "data:2,expert:4"; empty = all devices on data
  roles: typing.Any = axes.Config()  # which of its axes cut what


class Result(typing.NamedTuple):
  workdir: str
  step: int
  finished: bool  # False: stopped by a signal, to be resumed
  metrics: dict  # of the last evaluation
  state: object  # of train/step.py
  model: typing.Any


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
    with meshes.entered(mesh, cfg.roles), contextlib.closing(folder), signals.Stop() as stop:
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
    self.share = processes.share(mesh)
    self.record = record.Record(folder, self.ends[-1], terminal)
    self.checkpoints = checkpoint.Checkpoints(folder.path / "checkpoints", cfg.train.keep)

  def train(self) -> Result:
    """All stages that are left, then the end."""
    with contextlib.closing(self.checkpoints), self.record.display, self._together():
      at, state = self._resume() or self._begin()
      self.record.describe(at, self.corpus, self.mesh, state.params)
      finished = True
      for index in range(at.index, len(self.stages)):
        if index > at.index:
          at, state = self._enter(index, at, state)
        state, finished = self._stage(at, state)
        if not finished:
          break
      step = int(state.step)
      if finished:
        self._finish(at, state, step)
      else:
        who = self.stop.name or "a signal to another process"
        self.record.say(f"stopped by {who} at step {step}; the same command goes on from there.")
    return Result(str(self.folder.path), step, finished, self.record.evaluation, state, at.model)

  @contextlib.contextmanager
  def _together(self):
    """Inside, another process that is gone is a Failed; after an error none is waited for."""
    try:
      with processes.together():
        yield
    except BaseException:
      self.checkpoints.lost = jax.process_count() > 1
      raise

  # -- how a run, or a stage of it, starts -------------------------------------------------------

  def _phase(self, index, cfg) -> phase.Phase:
    trainable = self.stages[index].trainable
    return phase.make(index, cfg, trainable, self.corpus, self.mesh)

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
      except Wrong:
        raise  # it is whole, and of another version
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
      counts = {name: jnp.int32(meta[name]) for name in ("step", "bad", "skipped")}
      counts = jax.device_put(counts, {k: getattr(at.template, k).sharding for k in counts})
      self.record.go_on(meta)
      self.folder.forget_after(step, meta["stage"])
      if not self.folder.done():
        self.folder.log("resume", step=step)
        self.record.say(f"resumed at step {step}")
      return at, dataclasses.replace(at.template, **found, **counts)
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
    self.record.say(
      f"checkpoint {step} is damaged ({reason}); it was moved to damaged/{step} and is not used."
    )

  def _enter(self, index, at: phase.Phase, state):
    """The state and the functions at the start of a later stage."""
    stage = self.stages[index]
    if stage.transform is not None:
      state = migration.home(at, self.mesh, state)
    variables = {"params": state.params, **state.model_state}
    variables, model_cfg, follow = stages.enter(stage, variables, at.cfg.model, self.cfg.train.seed)
    cfg, model_cfg = stages.changed(at.cfg, model_cfg, stage.changes)
    new = self._phase(index, dataclasses.replace(cfg, model=model_cfg))
    variables = migration.started(variables, new.cfg.train.placement, model_cfg)
    how = {"old_cfg": at.cfg.model, "new_cfg": model_cfg, "follow": follow}
    state = stages.moved(state, variables, new.template, **how)
    self.folder.log("stage", stage=index, step=int(state.step), name=stages.title(stage))
    self.record.say(f"stage {index}: {stages.title(stage)}")
    return new, state

  # -- the steps -------------------------------------------------------------------------------

  def _stage(self, at: phase.Phase, state):
    """(state, whether it ran to its end): the steps of one stage."""
    train, begin, end = at.cfg.train, int(state.step), self.ends[at.index]
    replay = tracing.Replay(at, self.corpus, self.share[0])
    tracer = tracing.Tracer(at, self.folder, self.corpus, self.mesh)
    mover = None if train.placement is None else migration.Mover(at, self.mesh)
    batches = self._batches("train", train.batch_size, begin)
    with contextlib.closing(batches), contextlib.closing(tracer):
      before = None  # what the step before returned: only that one is waited for
      for step in range(begin + 1, end + 1):
        batch = self._put(replay.over(next(batches), step))
        if before is None:
          advance = self._compiled(at, state, batch)
          self.record.stage(at, begin)
        if tracer.due(step):
          with self.record.pause():
            tracer.write(state, batch, step)
        state, seen = advance(state, batch)
        if before is not None and int(before["bad"]) >= train.bad_steps - 1:
          self._check_finite(at, state)
        before, last = seen, step == end
        self.record.step(at, step)
        if step % train.log_every == 0 or last or step == 1:
          self.record.train(at, state, seen, step)
        if mover is not None and mover.due(step):
          state, found = mover(state)
          self.folder.log("placement", stage=at.index, step=step, layers=found)
        with self.record.pause():
          due = step % train.eval_every == 0 or last
          scores = self._evaluate(at, state, step) if due else {}
          stopping = self._stopping(train, step)
          if step % train.checkpoint_every == 0 or last or stopping:
            self._save(at, state, step, scores)
        if stopping and step < self.ends[-1]:
          return state, False
    return state, True

  def _compiled(self, at, state, batch):
    """The step, compiled before the clock runs."""
    start = time.perf_counter()
    advance = at.step.lower(state, batch).compile()
    self.record.say(f"compiled the step in {time.perf_counter() - start:.1f} s")
    return advance

  def _batches(self, split, batch_size, first_step=0):
    """The rows of this process."""
    return self.corpus.batches(split, batch_size, first_step, *self.share)

  def _put(self, batch):
    """A batch on the devices, cut over the axes of tokens."""
    return {name: meshes.batch(rows, self.mesh) for name, rows in batch.items()}

  def _stopping(self, train, step) -> bool:
    """Whether to end after this step; several processes ask each other at the logged ones."""
    alone = jax.process_count() == 1
    return (alone or step % train.log_every == 0) and processes.agreed(self.stop.wanted)

  def _check_finite(self, at, state):
    """Stops after too many bad steps in a row; the state is still that of the last good one."""
    bad, step = int(state.bad), int(state.step)
    if bad < at.cfg.train.bad_steps:
      return
    good = {"bad": jnp.int32(0), "skipped": state.skipped - bad}  # as it was before them
    self._save(at, dataclasses.replace(state, **good), step - bad, {})
    raise Failed(
      f"the loss or its gradients were not finite in {bad} steps in a row ({step - bad + 1} to"
      f" {step}); the last good state, of step {step - bad}, is kept. Raise train.bad_steps to go"
      " on from there, or lower train.lr_peak or optim.clip_norm with another --workdir."
    )

  def _evaluate(self, at, state, step) -> dict:
    """The scores on the first held-out batches, always the same; at the end, on all of them."""
    train, whole = at.cfg.train, step == self.ends[-1]
    with contextlib.closing(self._batches("validation", train.batch_size)) as batches:
      some = batches if whole else itertools.islice(batches, train.eval_batches)
      knobs = {name: value(step) for name, value in phase.knobs(at.cfg).items()}
      found = evaluate.total(at.evaluate, averaged(state), map(self._put, some), knobs)
    if found is None:
      return {}
    self.record.evaluated(at, found, step, self.corpus.labels if whole else ())
    return self.record.evaluation

  def _save(self, at, state, step, scores):
    where = {"stage": at.index, "step": step, "data": self.corpus.fingerprint}
    counts = {"bad": int(state.bad), "skipped": int(state.skipped), **self.record.counts()}
    meta = {**where, **counts, "config": config.dump(at.cfg)}
    self.checkpoints.save(step, state, meta, scores.get("loss"))

  def _finish(self, at, state, step):
    """A sample, and the last line."""
    if self.folder.done():
      self.record.say(f"this run is done: {step} steps in {self.folder.path}")
      return
    if at.cfg.train.sample_tokens and jax.process_count() == 1:
      trained = restore.Trained(step, at.cfg, at.model, averaged(state), self.corpus)
      written = sample.write(trained, "import ", at.cfg.train.sample_tokens)
      self.folder.write_text("sample.txt", written)
      self.record.say(f"a sample:\n{written}")
    self.folder.log("done", step=step, time=self.record.time())
