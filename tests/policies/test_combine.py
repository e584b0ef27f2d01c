"""The slots: what fits, and what is said when it does not."""

import pytest

from jdc import policies
from jdc.policies import combine, mixture, ordering, selection, weighting

odm, loss, sorting = mixture.odm(), selection.loss(), ordering.sorting()


def test_all_kinds_act_in_one_run():
  reweighting = weighting.loss_reweighting()
  chosen = combine(mixture=odm, selection=loss, ordering=sorting, weighting=reweighting)
  assert chosen == policies.Policies(odm, loss, sorting, reweighting)
  assert combine() == (None, None, None, None)
  with pytest.raises(TypeError, match="mixer"):
    combine(mixer=odm)


@pytest.mark.parametrize(
  ("slots", "message"),
  [
    ({"mixture": mixture.odm}, "mixture must be a DataPolicy .*call the factory"),
    ({"mixture": sorting}, "mixture must be a DataPolicy or None, got Ordering"),
    ({"ordering": odm}, "ordering must be an Ordering or None, got DataPolicy"),
    ({"weighting": loss}, "weighting.scope must be 'step', got 'round'"),
    ({"mixture": odm._replace(scope="epoch")}, "scope must be 'step' or 'round', got 'epoch'"),
    ({"mixture": odm._replace(update=None)}, "mixture.update must be a function"),
    ({"mixture": odm._replace(observes={"loss"})}, "observes must be a frozenset"),
    (
      {"mixture": odm._replace(observes=frozenset({"los"}))},
      r"unknown fields \['los'\]; known",
    ),
    ({"mixture": odm._replace(score=max)}, r"step scope, but \['score'\] belong to round"),
    ({"selection": loss._replace(score=None, sweep_ids=max)}, "selection.score is None"),
    ({"selection": loss._replace(observes_batch=frozenset({"loss"}))}, "observe is None"),
    ({"ordering": sorting._replace(order=None)}, "ordering.order must be a function"),
  ],
)
def test_rejects(slots, message):
  with pytest.raises(ValueError, match=message):
    combine(**slots)


def test_names_all_problems_at_once():
  with pytest.raises(
    ValueError, match=r"mixture must.*selection.*unknown.*ordering must.*weigh"
  ):
    combine(
      mixture="odm",
      selection=loss._replace(observes=frozenset({"x"})),
      ordering="sorting",
      weighting=loss,
    )
