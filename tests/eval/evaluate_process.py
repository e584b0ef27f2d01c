"""One process of a distributed evaluation; run as `evaluate_process.py INDEX COUNT PORT`."""

import json
import sys

import jax
import numpy as np

from jdc.eval.perplexity import evaluate
from jdc.models.base import MESH_AXES
from jdc.models.decoder import DecoderConfig, decoder


class Rows:
  """Random rows of one document; remembers which were read."""

  def __init__(self, num_rows):
    rng = np.random.default_rng(num_rows)
    self.tokens = rng.integers(0, 32, (num_rows, 9), dtype=np.int32)
    self.num_bytes = np.full(num_rows, 8, np.int32)
    self.read = set()

  def __len__(self):
    return len(self.tokens)

  def rows(self, ids):
    self.read.update(ids.tolist())
    return self.tokens[ids], np.ones((len(ids), 9), np.int32)


def main(index, count, port):
  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
  model = decoder(
    DecoderConfig(
      vocab_size=32, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=24
    )
  )
  axis_types = (jax.sharding.AxisType.Auto,) * 4
  mesh = jax.make_mesh((2, 2, 1, 2), MESH_AXES, axis_types=axis_types)
  key = jax.random.key(0)
  specs = model.partition_specs(jax.eval_shape(model.init, key))
  shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  params = jax.jit(model.init, out_shardings=shardings)(key)
  # In the last batches one process has no row of its own.
  tables = {"nine": Rows(9), "three": Rows(3)}
  metrics = evaluate(model.token_losses, params, tables, batch_size=8, mesh=mesh)
  read = {name: sorted(table.read) for name, table in tables.items()}
  print(json.dumps({"metrics": metrics, "read": read}))


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
