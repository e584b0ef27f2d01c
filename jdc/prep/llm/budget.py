"""Budgets: nothing is sent that might use more than is left."""

import asyncio

from jdc.prep.llm.answers import Reply, Spent
from jdc.prep.llm.params import Budget

_TEMPLATE = 64  # tokens that a chat template may put around messages


class UsedUp(RuntimeError):
  """A budget is used up."""


class Purse:
  """What was used of a model, and what requests under way may still use.

  Args:
    model: its name.
    spent: what earlier runs in the folder used.
  """

  def __init__(self, model: str, spent: Spent):
    self.model, self.spent = model, spent
    self._under_way = Spent()
    self._changed = asyncio.Event()

  async def reserve(self, budget: Budget, body: bytes, max_tokens: int) -> Spent:
    """Waits until a request fits, at the most that it may use: a token a byte.

    Raises:
      UsedUp: if it does not fit even when nothing is under way.
    """
    most = Spent(1, len(body) + _TEMPLATE, max_tokens)
    while over := self._over(budget, most):
      if not self._under_way.requests:
        raise UsedUp(self._message(budget, over))
      self._changed.clear()
      await self._changed.wait()
    self._under_way = _sum(self._under_way, most)
    return most

  def settle(self, reserved: Spent, reply: Reply | None) -> None:
    """Counts what a request used; `None`: it was not answered."""
    held = self._under_way
    self._under_way = Spent(held[0] - reserved[0], held[1] - reserved[1], held[2] - reserved[2])
    if reply is not None:
      self.spent = self.spent.plus(reply)
    self._changed.set()

  def _over(self, budget: Budget, most: Spent) -> list[str]:
    """Returns the limits that one more request might pass."""
    used = _sum(_sum(self.spent, self._under_way), most)
    limits = (budget.requests, budget.prompt_tokens, budget.completion_tokens)
    found = [
      name
      for name, limit, value in zip(Spent._fields, limits, used, strict=True)
      if limit is not None and value > limit
    ]
    if budget.money is not None and money(budget, used) > budget.money:
      found.append("money")
    return found

  def _message(self, budget: Budget, over: list[str]) -> str:
    used = {**self.spent._asdict(), "money": round(money(budget, self.spent), 6)}
    parts = [f"{name}: {used[name]} of {getattr(budget, name)} used" for name in over]
    return f"the budget of model {self.model!r} does not last: {', '.join(parts)}"


def money(budget: Budget, used: Spent) -> float:
  """Returns what tokens cost.

  >>> money(Budget(prompt_price=2.0, completion_price=8.0), Spent(1, 500_000, 250_000))
  3.0
  """
  prompt = used.prompt_tokens * budget.prompt_price
  return (prompt + used.completion_tokens * budget.completion_price) / 1e6


def _sum(a: Spent, b: Spent) -> Spent:
  return Spent(a[0] + b[0], a[1] + b[1], a[2] + b[2])
