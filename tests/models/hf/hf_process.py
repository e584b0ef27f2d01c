"""A process that reads and writes a checkpoint: `hf_process.py INDEX COUNT PORT FOLDER`."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jdc.models import hf
from jdc.models.base import MESH_AXES
from jdc.models.decoder import DecoderConfig, decoder
from jdc.models.hf import read
from jdc.models.hf.files import open_folder

CONFIG = DecoderConfig(
  vocab_size=64,
  width=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=4,
  mlp_width=48,
  context_length=16,
)


def main(index, count, port, folder):
  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
  axis_types = (jax.sharding.AxisType.Auto,) * 4
  mesh = jax.make_mesh((1, 4, 1, 2), MESH_AXES, axis_types=axis_types)
  model, key = decoder(CONFIG), jax.random.key(0)
  shapes = jax.eval_shape(model.init, key)
  specs = model.partition_specs(shapes)
  shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  params = jax.jit(model.init, out_shardings=shardings)(key)
  out = Path(folder) / f"of_{count}"
  hf.save(out, CONFIG, params, max_shard_bytes=20_000)

  opened = []
  read.open_folder = lambda f: opened.append(open_folder(f)) or opened[-1]
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )
  loaded = hf.load(out, CONFIG, target)
  same = jax.jit(lambda a, b: jnp.array(jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b))))
  result = {"same": bool(same(params, loaded).all()), "bytes": opened[0].bytes_read}
  try:
    hf.save(out, CONFIG, params)  # not empty any more
  except (ValueError, RuntimeError) as error:
    result["error"] = f"{type(error).__name__}: {error}"
  print(json.dumps(result))


if __name__ == "__main__":
  main(*map(int, sys.argv[1:4]), sys.argv[4])
