"""Descriptions tell policies apart, and are the same for the same policy."""

from jdc import policies
from jdc.policies import mixture, ordering, selection, weighting
from jdc.train.describe import describe


def chosen(**changes):
  return policies.combine(
    mixture=policies.floor(
      changes.get("floor", 0.1), mixture.odm(smoothing=changes.get("smoothing", 0.9))
    ),
    selection=policies.every(2, selection.loss(focus=changes.get("focus", "high"))),
    ordering=ordering.sorting(changes.get("descending", False)),
    weighting=weighting.loss_reweighting(delta=changes.get("delta", 1.0)),
  )


def test_the_same_policies_have_the_same_description():
  assert describe(chosen()) == describe(chosen())


def test_every_parameter_shows():
  base = describe(chosen())
  for change in (
    {"floor": 0.2}, {"smoothing": 0.5}, {"focus": "low"}, {"descending": True}, {"delta": 2.0},
  ):  # fmt: skip
    assert describe(chosen(**change)) != base, change
