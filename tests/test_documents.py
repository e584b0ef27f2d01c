"""The README's code and the notebooks run as they stand."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent


def test_the_policy_of_the_readme_trains():
  (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  assert len([line for line in block.splitlines() if line.strip()]) <= 15
  usage = """
model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
x = jax.random.normal(jax.random.key(1), (32, 4))
y = jnp.argmax(x[:, :3], axis=1)
losses = []
for _ in range(30):
  loss, state = train_step(model, optimizer, state, x, y)
  losses.append(float(loss))
"""
  names = {}
  exec(compile(block + usage, "README.md", "exec"), names)
  assert names["losses"][-1] < 0.5 * names["losses"][0]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv("JDC_CACHE", str(tmp_path))
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  monkeypatch.setenv("XLA_FLAGS", flags)
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
  ).execute()
