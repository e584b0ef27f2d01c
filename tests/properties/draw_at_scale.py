"""Draws under ODM from a large pool and prints what it costs, as JSON.

`draw_at_scale.py NUM_DOMAINS ROWS_PER_DOMAIN`
"""

import json
import resource
import sys
import time

import jax
import numpy as np

from jdc.data import loader, plan
from jdc.policies import mixture
from jdc.policies.base import ExampleStats, RunSpec

LENGTH, BATCH = 7, 64


class Table:
  """Stands in for rows on disk, which are mapped into memory and no part of the process."""

  def __init__(self, num_rows: int):
    self._num_rows = num_rows

  def __len__(self) -> int:
    return self._num_rows

  def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(ids[:, None], LENGTH + 1, axis=1).astype(np.int32)
    return rows, np.ones_like(rows)


def peak_megabytes() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def main(num_domains: int, rows_per_domain: int) -> None:
  jax.devices()
  before = peak_megabytes()

  sizes = (rows_per_domain,) * num_domains
  names = tuple(f"domain{k}" for k in range(num_domains))
  pool = loader.Pool([Table(size) for size in sizes], LENGTH)
  policy = mixture.odm(warmup_steps=1)
  proportions = (1.0 / num_domains,) * num_domains
  run = RunSpec(
    num_examples=sum(sizes), num_domains=num_domains, domain_names=names, domain_sizes=sizes,
    proportions=proportions, batch_size=BATCH,
  )  # fmt: skip
  decision, state = policy.init(run, jax.random.key(0))
  update = jax.jit(policy.update)
  spec = plan.PlanSpec(names, sizes, BATCH, 0, mixed=True)
  dataset = loader.Loader(pool, spec, np.asarray(decision.logits))
  iterator = iter(dataset)
  for _ in range(300):
    batch = next(iterator)
    fields = {
      "example_id": batch.example_id,
      "domain": batch.domain,
      "domain_probability": batch.domain_probability,
      "num_tokens": np.full(BATCH, LENGTH, np.int32),
      "loss": np.sin(batch.example_id).astype(np.float32) + 2,
      "step": np.int32(iterator.state.step),
    }
    stats = ExampleStats(**{name: fields[name] for name in policy.observes})
    decision, state = update(stats, state)
    iterator.push(decision.logits)
  grown = peak_megabytes() - before

  saved, seconds = iterator.state, []
  for step in (10**3, 10**6, 10**9):
    drawn = np.full(num_domains, step * BATCH // num_domains)
    values = json.dumps(plan.to_json(saved._replace(step=np.int64(step), drawn_G=drawn)))
    started = time.perf_counter()
    restored = iter(dataset)
    restored.set_state(json.loads(values))
    next(restored)
    seconds.append(time.perf_counter() - started)
  print(json.dumps({"rows": len(pool), "megabytes": grown, "seconds": max(seconds)}))


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
