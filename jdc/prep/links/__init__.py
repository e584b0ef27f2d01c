"""What each link of a chain does with the batches that pass, and the record it leaves."""

from jdc.prep.links.aside import DroppedFile, Quarantine, cause_kind
from jdc.prep.links.base import Handler, Place, Record, byte_lengths, columns_read, histogram
from jdc.prep.links.counts import KeysLink, TallyLink
from jdc.prep.links.masks import ApplyLink, SelectLink
from jdc.prep.links.text import SAMPLE, TextLink

__all__ = [
  "SAMPLE",
  "ApplyLink",
  "DroppedFile",
  "Handler",
  "KeysLink",
  "Place",
  "Quarantine",
  "Record",
  "SelectLink",
  "TallyLink",
  "TextLink",
  "byte_lengths",
  "cause_kind",
  "columns_read",
  "histogram",
]
