"""Offloading as SE-MoE has it, simulated: when a ring of sections stalls, which cache hits more.

Rows `ring`: the time of a pass over that of all sections resident (1.0: nothing stalls), with one
engine that copies and with one for each copy; "free from" is 1 + copy / work, the slots from which
on nothing stalls by the paper's formula. Rows `cache`: hit rates of a cache that counts uses, with
counts that decay, and of one that goes by age, under Zipf's law with drift, mean of seeds. Nothing
here is measured. Verdict: the formula holds where every copy has an engine of its own, and fails
with one, which is of no help beyond two slots and stalls wherever a copy takes longer than the
work; the cache that counts uses hits more than that by age in all six rows, by 0.5 to 12 points.

--sections=16   of the ring
--experts=256   of the cache, which has room for an eighth of them
--steps=8192    uses of experts
--seeds=3
"""

OPTIONS = {"sections": 16, "experts": 256, "steps": 8192, "seeds": 3}
BETTER = {}
PASSES = 20
RATIOS = (0.5, 1.0, 2.0, 3.5)  # of copying a section to working on it
DRIFTS = (4, 64, 1024)  # uses between two swaps of ranks


def run(options: dict):
  """The rows of the ring, then those of the cache."""
  from moejax.perf import offloading  # noqa: PLC0415

  N = options["sections"]
  whole = N * PASSES
  for copy in RATIOS:
    for slots in (1, 2, 3, 4, 5, N):
      one, many = (offloading.ring(N, slots, 1.0, copy, PASSES, engines=e) for e in (1, N))
      yield {
        "case": f"ring copy {copy} slots {slots}", "one engine": round(one / whole, 3),
        "an engine each": round(many / whole, 3), "free from": 1 + copy,
        "uses": None, "age": None,
      }  # fmt: skip
  for skew in (0.8, 1.2):
    for every in DRIFTS:
      rates = {"uses": offloading.lfu, "age": offloading.lru}
      traces = [
        offloading.drifting(options["steps"], options["experts"], skew, every, seed)
        for seed in range(options["seeds"])
      ]
      means = {
        name: round(sum(rate(t, options["experts"] // 8) for t in traces) / len(traces), 4)
        for name, rate in rates.items()
      }
      case = f"cache skew {skew} swap every {every}"
      yield {"case": case, **dict.fromkeys(("one engine", "an engine each", "free from")), **means}
