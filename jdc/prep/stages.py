"""A plan as links of chains: what one pass over a shard does, and where all must meet."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from jdc.prep import code_hash, plan_step
from jdc.prep.plan_step import Step
from jdc.prep.spec import InputSpec, OutputSpec, canonical_json, content_hash

Kind = Literal["text", "model", "select", "keys", "apply", "tally"]


@dataclasses.dataclass(frozen=True)
class Link:
  """A part of a chain: each has its own commit.

  Attributes:
    kind: `text` reads, changes and measures documents; `model` asks a language model; `select`
      drops by signals; `keys` makes the table of a global step; `apply` drops what it decided;
      `tally` counts what is left.
    name: of its folder in `work/`.
    steps: of `text` its maps, of `select` its predicates, else the one step.
    signals: of `text`, what measures.
    late: of `text`, maps of what was measured.
    code: hash of the code behind it.
    options: what else determines its output.
    reads_input: of the first link, that it reads raw files.
  """

  kind: Kind
  name: str
  steps: tuple[Step, ...] = ()
  signals: tuple[Step, ...] = ()
  late: tuple[Step, ...] = ()
  code: str = ""
  options: str = "{}"
  reads_input: bool = False

  def key(self, inputs: Sequence[Any]) -> str:
    """Returns the key of what the link makes of inputs with these hashes."""
    return content_hash(
      [
        self.kind,
        [step.keys_identity if self.kind == "keys" else step.identity for step in self.steps],
        [step.identity for step in self.signals],
        [step.identity for step in self.late],
        [measure.identity for step in self.steps for measure in plan_step.measures(step)],
        self.code,
        self.options,
        list(inputs),
      ]
    )


class Phase(NamedTuple):
  """What happens to each shard up to a point where all must meet; there `step` decides."""

  links: tuple[Link, ...]
  step: Step | None


def compile_plan(
  steps: Iterable[Step], spec: InputSpec, output: OutputSpec, *, keep_dropped: bool
) -> list[Phase]:
  """Returns the phases of a plan.

  All maps up to the next predicate or global step, and the signals of all predicates up to the
  next map, are one pass, whose text and signals are kept. Predicates only make masks of it, so
  that another threshold reads signals, and no text before the next map or global step. Maps
  behind predicates that are `early`, and whose text nothing measures, belong to the pass
  before, and spare another one; not where dropped texts are kept, as predicates saw them.
  """
  builder, held = _Builder(spec, keep_dropped), list(steps)
  for place, step in enumerate(held):
    builder.add(step, early=not keep_dropped and _may_be_early(step, held[place + 1 :]))
  return builder.finish(output)


def _may_be_early(step: Step, following: Iterable[Step]) -> bool:
  """Whether a map changes text that nothing measures before another pass writes it anew."""
  if not step.operator.early:
    return False
  for later in following:
    if later.operator.kind == "model" or later.rewrites:
      return True
    if later.operator.kind == "map" and not later.operator.early:
      return True
    if plan_step.measures(later):
      return False
  return True


class _Builder:
  def __init__(self, spec: InputSpec, keep_dropped: bool):
    # The patterns do not matter beside the files, nor does what becomes of bad lines.
    self._spec = canonical_json(
      spec.model_dump(mode="json", exclude={"paths", "on_bad_line", "task_mb"})
    )
    self._dropped = canonical_json({"text": keep_dropped})
    self._phases: list[Phase] = []
    self._links: list[Link] = []
    self._at: int | None = None  # the link with the present text, of the present phase
    self._phase_of_text = 0
    self._maps: list[Step] = []
    self._texts = 0
    self._by_model = False  # whether the present text is a model's, and has no signals

  def add(self, step: Step, *, early: bool) -> None:
    kind = step.operator.kind
    if kind == "map" and early and self._only_masks_since_text():
      assert self._at is not None
      held = self._links[self._at]
      self._links[self._at] = dataclasses.replace(held, late=(*held.late, step))
    elif kind == "map":
      self._maps.append(step)
    elif kind in ("predicate", "filter"):
      self._select(step)
    elif kind in ("dedup", "sample"):
      self._barrier(step)
    elif kind == "model":
      self._ask(step)
    else:
      raise ValueError(f"step {step.number}: {step.op} is of kind {kind}, not a step")

  def _only_masks_since_text(self) -> bool:
    if self._at is None or self._maps or self._by_model:
      return False
    here = self._phase_of_text == len(self._phases)
    return here and all(link.kind == "select" for link in self._links[self._at + 1 :])

  def _start_text(self, *, measured: bool = False) -> None:
    """Puts the maps so far into a link; signals are added to it until the next map."""
    if self._at is not None and not self._maps and not (measured and self._by_model):
      return
    first = not self._texts
    self._texts += 1
    name = f"{self._texts:02d}-" + (self._maps[0].op if self._maps and not first else "text")
    options = self._spec if first else "{}"
    self._links.append(
      Link("text", name, tuple(self._maps), options=options, reads_input=first)
    )
    self._maps, self._by_model = [], False
    self._at = len(self._links) - 1
    self._phase_of_text = len(self._phases)

  def _ask(self, step: Step) -> None:
    self._start_text()
    self._links.append(Link("model", f"{step.number:02d}-{step.op}", (step,)))
    self._by_model = True
    self._at = len(self._links) - 1
    self._phase_of_text = len(self._phases)

  def _select(self, step: Step) -> None:
    self._start_text(measured=True)
    for measure in plan_step.measures(step):
      self._add_signals(measure)
    last = self._links[-1] if self._links else None
    if last is not None and last.kind == "select":
      self._links[-1] = dataclasses.replace(last, steps=(*last.steps, step))
    else:
      name = f"{step.number:02d}-{step.op}"
      self._links.append(Link("select", name, (step,), options=self._dropped))

  def _add_signals(self, measure: Step) -> None:
    assert self._at is not None
    in_phase = self._phase_of_text < len(self._phases)
    links = list(self._phases[self._phase_of_text].links) if in_phase else self._links
    held = links[self._at]
    if measure.identity not in [s.identity for s in held.signals]:
      links[self._at] = dataclasses.replace(held, signals=(*held.signals, measure))
    if in_phase:
      phase = self._phases[self._phase_of_text]
      self._phases[self._phase_of_text] = phase._replace(links=tuple(links))

  def _barrier(self, step: Step) -> None:
    self._start_text(measured=bool(plan_step.measures(step)))
    for measure in plan_step.measures(step):
      self._add_signals(measure)
    self._links.append(Link("keys", f"{step.number:02d}-{step.op}", (step,)))
    self._phases.append(Phase(tuple(self._links), step))
    self._links = []
    if step.rewrites:
      self._maps = [step]
    else:
      name = f"{step.number:02d}-{step.op}"
      self._links.append(Link("apply", name, (step,), options=self._dropped))

  def finish(self, output: OutputSpec) -> list[Phase]:
    self._start_text()
    options = canonical_json({"shard_mb": output.shard_mb})
    self._links.append(Link("tally", "tally", options=options))
    self._phases.append(Phase(tuple(self._links), None))
    return [
      Phase(tuple(_with_code(link) for link in phase.links), phase.step)
      for phase in self._phases
    ]


def _with_code(link: Link) -> Link:
  parts = [plan_step.step_code(step) for step in (*link.steps, *link.signals, *link.late)]
  own = ["jdc.prep.links", *(["jdc.prep.readers"] if link.reads_input else [])]
  return dataclasses.replace(link, code=content_hash([*parts, code_hash.of_modules(own).hash]))
