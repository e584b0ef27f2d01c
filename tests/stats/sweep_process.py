"""A sweep that may be killed; `sweep_process.py FOLDER DELAY`.

Every chunk that is begun is noted in FOLDER/begun and takes DELAY seconds. A sweep that ends
prints its counts, and is compared with one without a store.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jdc.data import loader
from jdc.data.batch import inputs_and_targets
from jdc.stats import pool as pool_lib
from jdc.stats.features_table import FeaturesTable, FeaturesWriter
from jdc.stats.sweep_store import SweepStore

T, KEY = 64, {"seed": 0}


class Records:
  """Random records as a `records.RecordTable` gives them."""

  def __init__(self, count: int):
    rng = np.random.default_rng(0)
    self.lengths = rng.choice([9, 17, 33, T + 1], count).astype(np.int32)  # few shapes
    self._tokens = rng.integers(0, 50, (count, T + 1)).astype(np.int32)

  def __len__(self) -> int:
    return len(self.lengths)

  def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used = np.arange(T + 1) < self.lengths[ids][:, None]
    return self._tokens[ids] * used, used.astype(np.int32)


def main(folder: Path, delay: float) -> None:
  embedding = jax.random.normal(jax.random.key(0), (50, 8))
  sharding = jax.NamedSharding(jax.make_mesh((jax.device_count(),), ("data",)), jax.P("data"))
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())
  pool = loader.Pool([Records(150)], T)
  ids = np.arange(len(pool), dtype=np.int32)

  def look(embedding: jax.Array, context: None, batch: loader.Batch) -> dict[str, jax.Array]:
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    hidden = embedding.at[inputs.tokens].get(out_sharding=jax.P("data"))
    mean = jnp.sum(hidden * inputs.mask[:, :, None], axis=1) / (1 + batch.example_id[:, None])
    return {"norm": jnp.linalg.norm(mean, axis=1), "mean": mean}

  compiled = jax.jit(look, out_shardings=everywhere)

  def slow(*arguments: object) -> dict[str, jax.Array]:
    with (folder / "begun").open("a") as file:
      file.write("chunk\n")
    time.sleep(delay)
    return compiled(*arguments)

  arguments = (embedding, None, pool, ids, 4, sharding)
  with jax.set_mesh(sharding.mesh):
    store = SweepStore(folder / "store", KEY)
    features = FeaturesWriter(folder / "features", ["mean"], ids, KEY)
    found = pool_lib.sweep(slow, *arguments, store=store, features=features)
    plain = pool_lib.sweep(compiled, *arguments)
  np.testing.assert_array_equal(found.scores["norm"], plain.scores["norm"])
  assert found.scores.keys() == {"norm"}
  table = FeaturesTable(folder / "features")
  np.testing.assert_array_equal(table.rows(ids), plain.scores["mean"])
  print(json.dumps({"chunks": found.num_chunks, "computed": found.num_computed}))


if __name__ == "__main__":
  main(Path(sys.argv[1]), float(sys.argv[2]))
