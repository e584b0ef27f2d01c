"""Where every record that was read went."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def accounts(records: Sequence[Record], outputs: Sequence[Record]) -> dict[str, Any]:
  """Returns where every record that was read went.

  read = kept + dropped + quarantined - made, where `made` are documents that operators made
  more of, as `chunk_text` does.

  Raises:
    RuntimeError: if that does not add up, or a link saw other documents than the one before it
      let through.
  """
  read = made = 0
  quarantined: Counter[str] = Counter()
  dropped: Counter[str] = Counter()
  other: Counter[str] = Counter()
  through: dict[int, int] = {}
  for record in records:
    info, shard = record["info"], record["shard"]
    if record["link_kind"] in ("decide", "prepare"):
      continue
    if shard in through and info["rows_in"] != through[shard]:
      raise RuntimeError(
        f"shard {shard}: {record['name']} saw {info['rows_in']} documents of {through[shard]}"
      )
    if shard not in through:
      quarantined.update(info["quarantined"])
      read += info["rows_in"] + sum(info["quarantined"].values())
      other.update({k: info[k] for k in ("blank_lines", "other_records") if k in info})
    dropped.update(info.get("dropped", {}))
    if record["link_kind"] == "model":
      quarantined.update(info["quarantined"])
      gone = [*info["dropped"].values(), *info["quarantined"].values()]
      made += info["rows_out"] - info["rows_in"] + sum(gone)
    elif record["link_kind"] == "text":
      made += info["rows_out"] - info["rows_in"] + sum(info.get("dropped", {}).values())
    elif info["rows_in"] - info["rows_out"] != sum(info.get("dropped", {}).values()):
      raise RuntimeError(f"shard {shard}: {record['name']} dropped documents without a reason")
    through[shard] = info["rows_out"]
  for record in outputs:
    dropped.update(record["info"].get("dropped", {}))
  kept = sum(record["info"]["rows_out"] for record in outputs)
  result = {
    "read": read,
    "made": made,
    "kept": kept,
    "dropped": dict(sorted(dropped.items())),
    "quarantined": dict(sorted(quarantined.items())),
    **dict(sorted(other.items())),
  }
  if read + made != kept + dropped.total() + quarantined.total():
    raise RuntimeError(f"documents are not accounted for: {result}")
  return result


def where(counts: Mapping[str, Any]) -> str:
  """Returns accounts as text."""
  lines = [f"{counts['read']} records read"]
  if counts["made"]:
    lines.append(f"{counts['made']} more made of them")
  for name in ("quarantined", "dropped"):
    total = sum(counts[name].values())
    lines.append(f"{total} {name}")
    ordered = sorted(counts[name].items(), key=lambda item: (-item[1], item[0]))
    lines += [f"  {count:>9}  {reason}" for reason, count in ordered]
  lines.append(f"{counts['kept']} kept")
  return "\n".join(lines)


def not_found(records: Sequence[Record]) -> list[str]:
  """Returns a line for each thing that a step names and no document has, if there are any."""
  told = [record["info"] for record in records if "found" in record["info"]]
  totals: Counter[tuple[str, str]] = Counter()
  for info in told:
    for step, counts in info["found"].items():
      totals.update({(step, what): count for what, count in counts.items()})
  if not sum(info["rows_in"] for info in told):
    return []
  return [f"{step}: no record has the {what}" for (step, what), n in totals.items() if not n]
