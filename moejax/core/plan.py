"""The vocabulary: what a router may see, what it decides, and what an expert is.

Axis letters, the same in every file, every parameter name and every einsum (lower case = the part
of that axis one device holds):

  B batch   T sequence   N tokens = B*T, row-major   G token groups   L layers   V vocabulary
  E experts   Z virtual experts   U = E + Z   K choices per token   C slots per expert, all groups
  M dispatched rows   D width   F expert width   H, J query and key/value heads   A head width
  R rank, or replicas   Y labels of tokens
  S experts held in memory (E, unless a placement table says otherwise)
  P rows of a memory, one per slot   Q keys of one half of a query (layers/product_keys.py)

An expert id is -1 for an unused choice, 0..E-1 for an expert, E..U-1 for a virtual one.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp

from moejax.core.plugin import Wrong

static = lambda **kw: flax.struct.field(pytree_node=False, **kw)
empty = lambda: flax.struct.field(default_factory=dict)


class Experts(typing.NamedTuple):
  """fn(params, rows, size_E) -> y_MD, which is pure, and the plain dict it reads.

  Never a module or a closure: inside shard_map `fn` meets the local part of every parameter, and
  the suffixes of `params` say how to cut them.
  """

  fn: typing.Callable
  params: dict
  fused: typing.Callable | None = None  # fused(params, rows, size_E) -> y_ND, gates applied
  after_ND: jax.Array | None = None  # what is computed before experts begin (blocks/shortcut.py)

  def waiting(self, x: jax.Array) -> jax.Array:
    """x, which a compiler now cannot use before `after_ND` is there."""
    return x if self.after_ND is None else jax.lax.optimization_barrier((x, self.after_ND))[0]

  def to_tokens(self, rows, size_E) -> jax.Array:
    """Rows through their experts and back to their tokens."""
    if self.fused is not None:
      return self.fused(self.params, rows, size_E)
    return rows.combine(self.fn(self.params, rows, size_E))


class RouterInputs(flax.struct.PyTreeNode):
  """All that a router, an edit or a balance rule may look at; None where the model has none.

  It travels through blocks as `ctx`, without x_ND; the MoE layer fills x_ND and the static sizes,
  the Router fills `state` and `carry`.
  """

  x_ND: jax.Array | None = None
  token_N: jax.Array | None = None
  position_N: jax.Array | None = None
  segment_N: jax.Array | None = None
  valid_N: jax.Array | None = None  # False for padding: routed nowhere, counted nowhere
  modality_N: jax.Array | None = None  # which kind of input a token is, 0 .. modalities - 1
  cond_NC: jax.Array | None = None  # what the token is conditioned on: a diffusion step, a class
  state: dict = empty()  # the router's variables that no gradient moves, read-only
  carry: dict = empty()  # handed from layer to layer
  shared: dict = empty()  # what all layers have together, by router name
  extras: dict = empty()  # what a router leaves for the balance rules of its layer
  knobs: dict = empty()  # traced numbers that change during a run: k_active, ...
  forced_NK: jax.Array | None = None  # expert ids laid over the router's: -2 = route freely
  forced_gate_NK: jax.Array | None = None
  key: jax.Array | None = None  # None outside training: nothing random happens
  after_ND: jax.Array | None = None  # dense work that comes before that of the experts
  label_N: jax.Array | None = None  # the domain of a token, for the tap `label_count_YU`
  labels: int = static(default=0)
  taps: tuple = static(default=())  # names of the statistics asked for (core/taps.py)
  residual: typing.Any = static(default=None)  # dtype of the residual stream; None = as computed
  seq_len: int = static(default=1)
  vocab: int = static(default=0)  # of token_N; 0 = the model has no token ids
  groups: int = static(default=1)  # tokens compete only inside one contiguous N/groups of them
  parts: int = static(default=1)  # of the batch, of which a layer sees one (layers/pipeline.py)
  num_experts: int = static(default=0)
  virtual: tuple = static(default=())


class TokenPlan(flax.struct.PyTreeNode):
  """Each token names K experts; with slots, also the place it has in each expert's buffer.

  An edit that takes a choice away writes -1 over its id and leaves its gate where it was, so that a
  later edit can tell how much was lost. Nothing else reads the gate of an unused choice.
  """

  expert_NK: jax.Array
  gate_NK: jax.Array
  num_experts: int = static()
  virtual: tuple = static(default=())  # kinds of the ids E..U-1: zero, identity, constant
  slot_NK: jax.Array | None = None
  capacity: int = static(default=0)  # C, where there are slots: groups * slots in a group
  groups: int = static(default=1)

  def real_NK(self) -> jax.Array:
    """True where the choice is an expert: used and not virtual."""
    return (self.expert_NK >= 0) & (self.expert_NK < self.num_experts)

  def count_U(self) -> jax.Array:
    """How many choices each id received: a sum, so micro-batches and devices add up."""
    ones_NK = jnp.ones_like(self.gate_NK)
    return _columns(self.expert_NK, ones_NK, 0, self.num_experts + len(self.virtual)).sum(0)

  def weights_NE(self) -> jax.Array:
    """The meaning of the plan: y = sum over e of weights[n, e] * expert_e(x[n])."""
    return _columns(self.expert_NK, self.gate_NK, 0, self.num_experts)

  def weights_NZ(self) -> jax.Array:
    """The same for the virtual ids."""
    E = self.num_experts
    return _columns(self.expert_NK, self.gate_NK, E, E + len(self.virtual))

  def placed(self, slot_ER: jax.Array, stored: int) -> "TokenPlan":
    """The plan over the `stored` experts in memory; token n takes replica n mod R of each."""
    E, R = slot_ER.shape
    replica_NK = jnp.arange(len(self.expert_NK))[:, None] % R + jnp.zeros_like(self.expert_NK)
    stored_NK = slot_ER[jnp.clip(self.expert_NK, 0, E - 1), replica_NK]
    other_NK = jnp.where(self.expert_NK < 0, self.expert_NK, self.expert_NK - E + stored)
    expert_NK = jnp.where(self.real_NK(), stored_NK, other_NK)
    return self.replace(expert_NK=expert_NK, num_experts=stored)

  def rows(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(expert_M, token_M, gate_M), M = N*K; rows without an expert have expert E, token -1."""
    N, K = self.expert_NK.shape
    token_NK = jnp.where(self.real_NK(), jnp.arange(N)[:, None], -1)
    expert_NK = jnp.where(self.real_NK(), self.expert_NK, self.num_experts)
    return expert_NK.ravel(), token_NK.ravel(), self.gate_NK.ravel()

  def slots(self) -> "ExpertPlan":
    """The same plan as a table of slots."""
    if self.slot_NK is None:
      raise Wrong(
        "the plan has no slots, which this dispatch needs; add {'name': 'capacity'} to"
        " model.moe.edits, or use the dispatch 'sort'."
      )
    N, E, C = len(self.expert_NK), self.num_experts, self.capacity
    at_NK = jnp.where(self.real_NK(), self.expert_NK * C + self.slot_NK, E * C)
    token_NK = jnp.arange(N)[:, None] + jnp.zeros_like(self.expert_NK)
    token_EC = jnp.full((E * C,), -1).at[at_NK].set(token_NK, mode="drop").reshape(E, C)
    gate_EC = jnp.zeros((E * C,), self.gate_NK.dtype).at[at_NK].add(self.gate_NK, mode="drop")
    return ExpertPlan(token_EC, gate_EC.reshape(E, C), N, self.groups)

  def soft(self) -> "SoftPlan":
    """The same plan as weights."""
    return self.slots().soft()

  def local(self, shard: jax.Array, shards: int) -> "TokenPlan":
    """Of a plan whose arrays are already cut along N: slots counted inside this shard."""
    c = self.capacity // shards
    slot_NK = None if self.slot_NK is None else self.slot_NK - shard * c
    return self.replace(slot_NK=slot_NK, capacity=c)


class ExpertPlan(flax.struct.PyTreeNode):
  """Each expert names C tokens, -1 for an empty slot; C is cut by groups in the order of N."""

  token_EC: jax.Array
  gate_EC: jax.Array
  num_tokens: int = static()
  groups: int = static(default=1)
  virtual = ()

  @property
  def num_experts(self) -> int:
    return self.token_EC.shape[0]

  def count_U(self) -> jax.Array:
    """How many tokens each expert took."""
    return (self.token_EC >= 0).sum(1).astype(self.gate_EC.dtype)

  def weights_NE(self) -> jax.Array:
    """The meaning of the plan, as for TokenPlan."""
    return self._by_token(self.gate_EC)

  def taken_NE(self) -> jax.Array:
    """Whether an expert took a token."""
    return self._by_token(jnp.ones_like(self.gate_EC)) > 0

  def _by_token(self, value_EC) -> jax.Array:
    """What is said of slots, added up in [N, E]; empty slots are left out."""
    E, N = self.num_experts, self.num_tokens
    token_EC = jnp.where(self.token_EC < 0, N, self.token_EC)
    zero_NE = jnp.zeros((N, E), value_EC.dtype)
    return zero_NE.at[token_EC, jnp.arange(E)[:, None]].add(value_EC, mode="drop")

  def taken_NK(self) -> jax.Array:
    """The same as ids, K = E: every expert in its own place, -1 where it did not take the token."""
    return jnp.where(self.taken_NE(), jnp.arange(self.num_experts)[None], -1)

  def placed(self, slot_ER: jax.Array, stored: int) -> "ExpertPlan":
    """The plan over the experts in memory, for tables that are one to one."""
    C = self.token_EC.shape[1]
    token_SC = jnp.full((stored, C), -1).at[slot_ER[:, 0]].set(self.token_EC)
    gate_SC = jnp.zeros((stored, C), self.gate_EC.dtype).at[slot_ER[:, 0]].set(self.gate_EC)
    return self.replace(token_EC=token_SC, gate_EC=gate_SC)

  def rows(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(expert_M, token_M, gate_M), M = E*C."""
    expert_EC = jnp.where(
      self.token_EC < 0, self.num_experts, jnp.arange(self.num_experts)[:, None]
    )
    return expert_EC.ravel(), self.token_EC.ravel(), self.gate_EC.ravel()

  def slots(self) -> "ExpertPlan":
    """It is one."""
    return self

  def soft(self) -> "SoftPlan":
    """The same plan as weights: one-hot tables of N * E * C / groups numbers, by design."""
    (E, C), N, G = self.token_EC.shape, self.num_tokens, self.groups
    n, c = N // G, C // G
    token_GEc = self.token_EC.reshape(E, G, c).swapaxes(0, 1) - n * jnp.arange(G)[:, None, None]
    at_GnEc = jnp.arange(n)[None, :, None, None] == token_GEc[:, None]  # empty slots match none
    gate_GEc = self.gate_EC.reshape(E, G, c).swapaxes(0, 1)
    dispatch_NEC = at_GnEc.astype(gate_GEc.dtype).reshape(N, E, c)
    combine_NEC = jnp.where(at_GnEc, gate_GEc[:, None], 0).reshape(N, E, c)
    return SoftPlan(dispatch_NEC, combine_NEC, G)

  def local(self, shard: jax.Array, shards: int) -> "ExpertPlan":
    """Of a plan whose arrays are already cut along C: tokens counted inside this shard."""
    n = self.num_tokens // shards
    token_EC = jnp.where(self.token_EC < 0, -1, self.token_EC - shard * n)
    return self.replace(token_EC=token_EC, num_tokens=n)


class SoftPlan(flax.struct.PyTreeNode):
  """Each slot is a mixture of the tokens of its group, each token a mixture of its group's slots.

  C counts the slots of an expert in ONE group here; the group of a row is that of its token:
  slot[g, e, c] = sum over n in g of dispatch[n, e, c] x[n]
  y[n] = sum over e and c of combine[n, e, c] expert_e(slot[g, e, c])
  """

  dispatch_NEC: jax.Array
  combine_NEC: jax.Array
  groups: int = static(default=1)
  virtual = ()

  @property
  def num_experts(self) -> int:
    return self.dispatch_NEC.shape[1]

  def count_U(self) -> jax.Array:
    """How many slots each expert computes: all of them."""
    _, E, C = self.dispatch_NEC.shape
    return jnp.full((E,), self.groups * C, self.combine_NEC.dtype)

  def placed(self, slot_ER: jax.Array, stored: int) -> "SoftPlan":
    """The plan over the experts in memory, for tables that are one to one."""
    N, _, C = self.dispatch_NEC.shape
    move = lambda a_NEC: jnp.zeros((N, stored, C), a_NEC.dtype).at[:, slot_ER[:, 0]].set(a_NEC)
    return self.replace(dispatch_NEC=move(self.dispatch_NEC), combine_NEC=move(self.combine_NEC))

  def soft(self) -> "SoftPlan":
    """It is one."""
    return self

  def slots(self, *_):
    """A mixture has no token to put into a slot."""
    raise Wrong("this router mixes tokens instead of choosing some; use the dispatch 'einsum'.")

  rows = weights_NE = local = slots


def _columns(id_NK, value_NK, first, last):
  """Values added up by id in [N, last - first]; other ids are left out. Nothing of [N, K, E].

  Token by token, so that the compiler of a mesh knows that no row touches another.
  """
  at_NK = jnp.where((id_NK >= first) & (id_NK < last), id_NK - first, last - first)
  zero_E = jnp.zeros(last - first, value_NK.dtype)
  one = lambda at_K, value_K: zero_E.at[at_K].add(value_K, mode="drop")
  return jax.vmap(one)(at_NK, value_NK)
