"""Adapters of the library PEFT: read and written."""

from jdc.models.peft.adapter import load_adapter, read_adapter_config, save_adapter

__all__ = ["load_adapter", "read_adapter_config", "save_adapter"]
