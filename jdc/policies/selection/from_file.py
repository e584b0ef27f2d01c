"""Selection by scores that were computed before the run."""

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.selection import score_files
from jdc.policies.selection.score_files import IDS, ScoreTable

_SHOWN = 3


def from_file(path: str, score: str = "score", weight: str = "") -> DataPolicy:
  """Samples rows by the scores in a file, which a sweep or any other tool wrote.

    logit_i = score_i,

  the same in every round; -inf for rows that the file lacks and for those whose score is not
  finite, as float32. `top_k` draws keep the rows of the highest scores; sampled draws have
  p ~ exp(score).

  Args:
    path: a Parquet file, for which pyarrow is needed, or a .npz, with the columns `example_id`
      (rows of the pool from 0, whole numbers, each at most once) and those named next; or a
      .npy, a structured array of such fields or a plain array with the `score` of every row of
      the pool. If the metadata entry `jdc` of a Parquet file, a JSON object, holds
      `data_fingerprint`, the run's data must have the same.
    score: the column of scores.
    weight: the column of weights that rows have in the loss, finite and at least 0, 1 where the
      file lacks a row or its score is not finite; empty: none.

  Returns:
    A round-scope policy that observes nothing and sweeps nothing. Its decision holds `logits`
    f32[N] and, with `weight`, `weights` f32[N]. Metrics count the rows of the pool that the
    file lacks, `num_missing`, those whose score is not finite, `num_nonfinite`, and the rest,
    `num_eligible`.

  Raises:
    ValueError: if the file is missing or not readable, lacks a column (those there are listed),
      an id is repeated or negative, no score is finite, or a weight is not finite or negative;
      in `init`, if an id is outside the pool, a plain array has another length, or the scores
      are those of other data.
    ImportError: if a Parquet file is given and pyarrow is not installed.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   np.savez(f"{folder}/scores.npz", example_id=[2, 0], score=[0.5, -1.5])
    ...   policy = from_file(f"{folder}/scores.npz")
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,))
    >>> decision, _ = policy.init(spec, jax.random.key(0))
    >>> decision.logits.tolist()
    [-1.5, -inf, 0.5]
  """
  named = {"path": path, "score": score}
  checks.raise_all(
    f"{name} must be text that is not empty, got {value!r}"
    for name, value in named.items()
    if not (isinstance(value, str) and value)
  )
  checks.require((isinstance(weight, str), f"weight must be text, got {weight!r}"))
  wanted = dict.fromkeys([IDS, score, *([weight] if weight else [])])
  table = score_files.read(path, list(wanted))
  id_n = table.columns[IDS]
  with np.errstate(over="ignore"):  # to inf, which is not finite
    score_n = table.columns[score].astype(np.float32)
  weight_n = table.columns[weight] if weight else None
  checks.raise_all(f"{path}: {x}" for x in _problems(id_n, score_n, weight_n))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    checks.raise_all(f"{path}: {x}" for x in _misfits(id_n, table, spec))
    decision = _decision(id_n, score_n, weight_n, spec.num_examples)
    return decision, decision

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    del stats
    return state, state

  return DataPolicy(init, update, frozenset(), scope="round")


def _decision(
  id_n: np.ndarray, score_n: np.ndarray, weight_n: np.ndarray | None, num_rows: int
) -> Decision:
  finite_n = np.isfinite(score_n)
  logits_N = np.full(num_rows, -np.inf, np.float32)
  logits_N[id_n] = np.where(finite_n, score_n, -np.inf)
  weights_N = None
  if weight_n is not None:
    weights_N = np.ones(num_rows, np.float32)
    weights_N[id_n] = np.where(finite_n, weight_n, 1.0)
  counts = {
    "num_missing": num_rows - len(id_n),
    "num_nonfinite": int(np.sum(~finite_n)),
    "num_eligible": int(np.sum(finite_n)),
  }
  return Decision(
    logits=jnp.asarray(logits_N),
    weights=None if weights_N is None else jnp.asarray(weights_N),
    metrics={name: jnp.int32(count) for name, count in counts.items()},
  )


def _problems(id_n: np.ndarray, score_n: np.ndarray, weight_n: np.ndarray | None) -> list[str]:
  problems = []
  if id_n.dtype.kind not in "iu":
    problems.append(f"{IDS} must be whole numbers without gaps, got {id_n.dtype}")
  else:
    values, counts = np.unique(id_n, return_counts=True)
    problems += _listed(f"{IDS} must be at least 0", values[values < 0])
    problems += _listed(f"{IDS} must be unique", values[counts > 1])
  if not np.any(np.isfinite(score_n)):
    problems.append(f"none of {len(score_n)} scores is finite")
  if weight_n is not None:
    with np.errstate(over="ignore"):
      weight_n = weight_n[np.isfinite(score_n)].astype(np.float32)
    bad_n = weight_n[~(np.isfinite(weight_n) & (weight_n >= 0))]
    problems += _listed("weights must be finite and at least 0", bad_n)
  return problems


def _misfits(id_n: np.ndarray, table: ScoreTable, spec: RunSpec) -> list[str]:
  num_rows = spec.num_examples
  outside_n = id_n[id_n >= num_rows]
  problems = _listed(f"{IDS} must be below num_examples {num_rows}", outside_n)
  if table.is_whole and len(id_n) != num_rows:
    problems.append(f"a plain array must have num_examples {num_rows} rows, got {len(id_n)}")
  scored, trained = table.data_fingerprint, spec.data_fingerprint
  if scored and trained and scored != trained:
    problems.append(
      f"data_fingerprint {scored!r} of the scores is not that of the run, {trained!r}"
    )
  return problems


def _listed(claim: str, bad_n: np.ndarray) -> list[str]:
  if not len(bad_n):
    return []
  shown = ", ".join(str(value) for value in bad_n[:_SHOWN].tolist())
  more = f" and {len(bad_n) - _SHOWN} more" if len(bad_n) > _SHOWN else ""
  return [f"{claim}, got {shown}{more}"]
