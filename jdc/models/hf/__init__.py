"""Checkpoints of the Hugging Face library transformers: read and written, sharded or not."""

from jdc.models.hf.config import from_hf_config, read_token_ids
from jdc.models.hf.config_write import to_hf_config
from jdc.models.hf.read import fingerprint, load
from jdc.models.hf.write import save

__all__ = [
  "fingerprint",
  "from_hf_config",
  "load",
  "read_token_ids",
  "save",
  "to_hf_config",
]
