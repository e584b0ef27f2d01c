"""Prepare, train, learn about the data, prepare again: rounds that a held-out set judges.

One model is trained on a budget of tokens. Its first part is trained on the data as the plan
makes them. In each round, feedback proposes the next version; from the same weights, one arm
goes on with the data as they were and one with the new version, for as many tokens, and the arm
that the held-out set prefers goes on. What is left of the budget is trained on the data that
were kept, with a falling learning rate. The tokens of both arms count.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jdc.prep import manifest, ops, runner
from jdc.prep.feedback import command as feedback_lib
from jdc.prep.feedback import lists
from jdc.prep.feedback.held_out import HeldOut
from jdc.prep.feedback.propose import Limits
from jdc.prep.readers import files
from jdc.prep.spec import PlanSpec, StepSpec, step
from jdc.recipes import held_out_losses, runs
from jdc.recipes.held_out_losses import Comparison, Losses
from jdc.train import command, fields, loop, pretrained
from jdc.train import config as config_lib
from jdc.train.config import TrainConfig
from jdc.train.state import Weights

_LOG = logging.getLogger("jdc")
_HASHES = "held_out.hashes"


class Stopped(Exception):
  """A signal has stopped a run; the same call goes on."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a budget is spent.

  Attributes:
    tokens: trained in all, those of arms that are not kept among them.
    rounds: most rounds.
    first: share of the tokens before the first round.
    trial: share of the tokens of each arm of a round.
    min_gain: bits per byte that the new version must win by.
    limits: of proposals.
  """

  tokens: int
  rounds: int = 1
  first: float = 0.25
  trial: float = 0.1
  min_gain: float = 0.0
  limits: Limits = dataclasses.field(default_factory=Limits)

  def __post_init__(self) -> None:
    wrong = list(fields.wrong_types(self))
    if self.rounds < 0:
      wrong.append(f"rounds must be 0 or more, got {self.rounds}")
    shares = {"first": self.first, "trial": self.trial}
    wrong += [f"{n} must be in (0, 1), got {x}" for n, x in shares.items() if not 0 < x < 1]
    spent = (self.first if self.rounds else 0) + 2 * self.rounds * self.trial
    if spent >= 1:
      wrong.append(f"first + 2 x rounds x trial must be below 1, got {spent:g}")
    if self.min_gain < 0:
      wrong.append(f"min_gain must be 0 or more, got {self.min_gain}")
    if wrong:
      raise ValueError("; ".join(wrong))


class Version(NamedTuple):
  """A version of the data."""

  plan: Path
  data: Path  # token shards


class Outcome(NamedTuple):
  """How a loop ended."""

  plan: Path  # of the data that were kept
  run: Path  # the last one
  bits_per_byte: float  # on the held-out set, the mean over domains
  rounds: list[dict[str, Any]]


def run(
  settings: Settings, plan: str | Path, base: TrainConfig, held_out: str | Path,
  workdir: str | Path,
) -> Outcome:  # fmt: skip
  """Runs the loop, or goes on with it; stages that have ended are not done again.

  `loop.json` in the workdir tells the rounds, with the figures of each decision.

  Args:
    settings: the budget and how it is spent.
    plan: a `pipeline.toml` whose output is token shards.
    base: of all runs; data, steps, schedule and the table of examples are set here.
    held_out: a folder of texts (see `HeldOut`). Neither the plan's input nor any file that the
      config names may lie in it, and no document may have one of its texts.
    workdir: where everything is kept.

  Raises:
    ValueError: before any run, listing what is wrong; if the workdir is of other settings.
    Stopped: after a signal to stop.
  """
  made = _Loop(settings, Path(plan), base, HeldOut(held_out), Path(workdir))
  return made.run()


class _Loop:
  def __init__(
    self, settings: Settings, plan: Path, base: TrainConfig, held_out: HeldOut, workdir: Path
  ):
    self._settings, self._base, self._held_out = settings, base, held_out
    self._workdir = workdir
    self._plan = _located(PlanSpec.read(plan), plan.absolute().parent)
    per_step = base.batch_size * base.sequence_length
    total = settings.tokens // per_step
    self._first = max(round(settings.first * total), 1)
    self._trial = max(round(settings.trial * total), 1)
    self._left = total
    _check(self._plan, base, held_out, total, settings)
    self._note_settings()

  def run(self) -> Outcome:
    settings = self._settings
    kept, weights, rounds = self._prepare("data-0", self._plan), None, []
    latest: Path | None = None
    if settings.rounds:
      latest = weights = self._train("first", kept, self._first, None)
    for number in range(1, settings.rounds + 1):
      assert latest is not None
      told = self._round(number, kept, latest, weights)
      rounds.append(told)
      if told["kept"] is None:  # nothing to change: the tokens go to the end
        break
      arm = "new" if told["kept"] else "old"
      latest = weights = self._workdir / "runs" / f"round-{number}-{arm}"
      if told["kept"]:
        kept = self._version(number)
    last = self._train("last", kept, self._left, weights, falls=True)
    found = self._evaluate(last)
    value = {"rounds": rounds, "plan": str(kept.plan), "held_out": _shown(found)}
    runs.write_json(self._workdir / "loop.json", value)
    return Outcome(kept.plan, last, found.macro(), rounds)

  def _version(self, number: int) -> Version:
    name = f"data-{number}"
    return Version(self._workdir / f"{name}.toml", self._workdir / name / "data")

  def _round(
    self, number: int, kept: Version, latest: Path, weights: Path | None
  ) -> dict[str, Any]:
    """Tries the next version of the data; returns what came of it."""
    ended = self._workdir / f"round-{number}.json"
    if ended.exists():
      told = json.loads(ended.read_text(encoding="utf-8"))
      self._left -= 0 if told["kept"] is None else 2 * self._trial
      return told
    told = self._tried(number, kept, latest, weights)
    runs.write_json(ended, told)
    return told

  def _tried(
    self, number: int, kept: Version, latest: Path, weights: Path | None
  ) -> dict[str, Any]:
    path = self._workdir / f"data-{number}.toml"
    written = feedback_lib.feedback(latest, kept.data, kept.plan, path, self._settings.limits)
    told: dict[str, Any] = {"round": number, "proposal": f"{path.stem}.report.json"}
    if written.plan is None:
      _LOG.info("round %d: the evidence supports no change", number)
      return told | {"kept": None}
    new = self._prepare(path.stem, PlanSpec.read(path))
    arms: dict[str, Losses] = {}
    for name, version in {"old": kept, "new": new}.items():
      trained = self._train(f"round-{number}-{name}", version, self._trial, weights)
      arms[name] = self._evaluate(trained)
    found = held_out_losses.compare(arms["new"], arms["old"])
    keeps = _keeps(found, self._settings.min_gain)
    _LOG.info(
      "round %d: %+.4f bits per byte [%+.4f, %+.4f], %s", number, *found,
      "kept" if keeps else "not kept",
    )  # fmt: skip
    shown = {name: _shown(losses) for name, losses in arms.items()}
    return told | {"kept": keeps, "difference": found._asdict(), **shown}

  def _prepare(self, name: str, plan: PlanSpec) -> Version:
    """Makes the data of a plan; no document may have a text of the held-out set."""
    path, folder = self._workdir / f"{name}.toml", self._workdir / name
    if not path.exists():
      path.write_text(plan.to_toml(), encoding="utf-8")
    version = Version(path, folder / "data")
    guarded = plan.model_copy(
      update={"step": (*plan.step, step("refuse_texts", path=_HASHES, why="held out"))}
    )
    if manifest.is_complete(folder) and manifest.plan_of(manifest.read(folder)) == guarded:
      return version
    _LOG.info("%s: prepares", name)
    made = runner.run(guarded, folder, root=self._workdir, report=False)
    _LOG.info("%s", manifest.summary(made))
    if failed := [held["name"] for held in made["expectations"] if not held["holds"]]:
      raise ValueError(f"{path}: the result is not as expected: {', '.join(failed)}")
    _check_drops(plan, self._workdir, made["accounts"]["dropped"])
    return version

  def _train(
    self, name: str, data: Version, steps: int, weights: Path | None, *, falls: bool = False
  ) -> Path:
    """Trains so many steps, from the weights of an earlier run; counts them."""
    self._left -= steps if name != "last" else 0
    folder = self._workdir / "runs" / name
    if (folder / "finished").exists():
      return folder
    config = self._config(data, steps, weights, falls)
    _LOG.info("%s: %d steps on %s", name, steps, data.plan.stem)
    built = command.build_run(config, str(folder))
    if weights is not None:
      built = built._replace(weights=_weights(weights))
    result = loop.fit(built, str(folder))
    if result.stopped == "SIGTERM":
      raise Stopped
    if result.stopped != "finished":
      raise ValueError(f"{folder} ended before its last step: {result.stopped}")
    (folder / "finished").touch()
    return folder

  def _config(
    self, data: Version, steps: int, weights: Path | None, falls: bool
  ) -> TrainConfig:
    base = self._base
    optimizer = dataclasses.replace(
      base.optimizer,
      schedule="linear" if falls else "constant",
      # Of a run that goes on, for the moments of the optimizer, which begin anew.
      warmup_steps=min(
        base.optimizer.warmup_steps, max(steps // 10, 1) if weights else steps - 1
      ),
    )
    logged = dataclasses.replace(base.logging, example_table=True)
    # A domain that has become small may have no validation rows, and the held-out set judges.
    evaluation = dataclasses.replace(base.evaluation, split="none")
    return dataclasses.replace(
      base, data=str(data.data), num_steps=steps, optimizer=optimizer, logging=logged,
      evaluation=evaluation,
    )  # fmt: skip

  def _evaluate(self, trained: Path) -> Losses:
    path = trained / "held_out.json"
    if path.exists():
      saved = json.loads(path.read_text(encoding="utf-8"))
      if saved["held_out"] == self._held_out.fingerprint:
        return held_out_losses.from_json(saved["losses"])
    found = held_out_losses.losses(trained, self._held_out.texts, self._base.batch_size)
    content = {"held_out": self._held_out.fingerprint, "losses": held_out_losses.to_json(found)}
    runs.write_json(path, content)
    return found

  def _note_settings(self) -> None:
    """Writes what the workdir is of; an error if it is of something else."""
    described = json.loads(
      json.dumps({
        "settings": dataclasses.asdict(self._settings),
        "plan": self._plan.to_dict(),
        "config": config_lib.to_json(self._base),
        "held_out": self._held_out.fingerprint,
      })
    )  # fmt: skip
    path = self._workdir / "settings.json"
    if path.exists():
      saved = json.loads(path.read_text(encoding="utf-8"))
      if changed := [name for name in described if saved.get(name) != described[name]]:
        raise ValueError(
          f"{self._workdir} is of another loop, choose another workdir: {', '.join(changed)} "
          "differ"
        )
      return
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._held_out.write_hashes(self._workdir / _HASHES)
    runs.write_json(path, described)


def _check_drops(plan: PlanSpec, root: Path, dropped: Mapping[str, int]) -> None:
  """Raises a RuntimeError unless all documents of the plan's lists were dropped by them."""
  paths = [root / s.params["path"] for s in plan.step if s.op == "drop_documents"]
  listed = sum(len(lists.read(path)) for path in paths)
  gone = sum(n for reason, n in dropped.items() if reason.startswith("drop_documents."))
  if gone != listed:
    raise RuntimeError(
      f"{listed} documents are listed in {', '.join(map(str, paths))}, {gone} were dropped"
    )


def _keeps(found: Comparison, min_gain: float) -> bool:
  """The rule: the whole interval is below 0, by more than the least gain."""
  return found.high < -min_gain


def _shown(found: Losses) -> dict[str, Any]:
  return {"macro": found.macro(), "bits_per_byte": found.bits_per_byte()}


def _weights(folder: Path) -> Weights:
  """The parameters of an earlier run, all of them."""
  reference = pretrained.reference(folder)

  def load(target: Any) -> Any:
    mesh = jax.tree.leaves(target)[0].sharding.mesh
    params = pretrained.open_model(folder, mesh).params
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, target)

  return Weights(load, lambda path: True, reference.fingerprint)


def _located(plan: PlanSpec, root: Path) -> PlanSpec:
  """Returns the plan with paths that start nowhere, to be kept in any folder."""
  given = plan.input.paths
  absolute = lambda paths: tuple(str(root / path) for path in paths)
  if isinstance(given, Mapping):
    paths: Any = {name: absolute(found) for name, found in given.items()}
  else:
    paths = absolute(given)
  tokens = dict(plan.output.tokens)
  if tokens.get("tokenizer", "bytes") != "bytes":
    tokens["tokenizer"] = str(root / tokens["tokenizer"])
  return plan.model_copy(
    update={
      "input": plan.input.model_copy(update={"paths": paths}),
      "step": tuple(_located_step(held, root) for held in plan.step),
      "output": plan.output.model_copy(update={"tokens": tokens}),
    }
  )


def _located_step(held: StepSpec, root: Path) -> StepSpec:
  params = ops.OPERATORS[held.op].make_params(held.params)
  if not hasattr(params, "at"):
    return held
  moved = json.loads(params.at(root).model_dump_json())
  return held.model_copy(update={"params": {name: moved[name] for name in held.params}})


def _check(
  plan: PlanSpec, base: TrainConfig, held_out: HeldOut, total: int, settings: Settings
) -> None:
  errors = []
  if plan.output.format != "tokens":
    errors.append(f"output.format must be 'tokens', got {plan.output.format!r}")
  elif plan.output.tokens.get("seq_len", 2048) != base.sequence_length:
    errors.append(
      f"output.tokens.seq_len is {plan.output.tokens.get('seq_len', 2048)}, the runs have "
      f"sequence_length={base.sequence_length}"
    )
  if base.model is None or base.lora is not None:
    errors.append("the config needs a model without adapters, which goes from run to run")
  if base.checkpoint.folder:
    errors.append(
      f"checkpoint.folder={base.checkpoint.folder!r} must be empty: each run has its own"
    )
  if total * min(settings.first, settings.trial) < 1:
    errors.append(f"tokens={settings.tokens} are too few: a run would have no step")
  if errors:
    raise ValueError("; ".join(errors))
  read = files.find(plan.input, Path("/"))
  named: dict[str, Any] = {"input.paths": [file.path for file in read]}
  for number, held in enumerate(plan.step, start=1):
    params = ops.OPERATORS[held.op].make_params(held.params)
    named[f"step {number} ({held.op})"] = list(getattr(params, "files", tuple)())
  flat = {n: x for n, x in config_lib.to_json(base).items() if isinstance(x, str) and x}
  held_out.refuse_paths({**named, **flat})
  if base.target.folder:
    held_out.refuse_copies("target.folder", base.target.folder, base.corpus.text_field)
