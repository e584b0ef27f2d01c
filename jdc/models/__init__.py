"""Language models as pure functions."""

from jdc.models.base import BATCH_AXES, MESH_AXES, LanguageModel, Params
from jdc.models.configs import DecoderConfig
from jdc.models.cross_entropy import token_cross_entropy
from jdc.models.decoder import decoder
from jdc.models.partition import check_partition, partition_specs

__all__ = [
  "BATCH_AXES",
  "MESH_AXES",
  "DecoderConfig",
  "LanguageModel",
  "Params",
  "check_partition",
  "decoder",
  "partition_specs",
  "token_cross_entropy",
]
