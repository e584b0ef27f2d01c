"""Language models as pure functions; the decoder is `jdc.models.decoder.decoder`."""

from jdc.models.base import BATCH_AXES, MESH_AXES, LanguageModel, Params
from jdc.models.configs import DecoderConfig
from jdc.models.cross_entropy import token_cross_entropy
from jdc.models.partition import check_partition

__all__ = [
  "BATCH_AXES",
  "MESH_AXES",
  "DecoderConfig",
  "LanguageModel",
  "Params",
  "check_partition",
  "token_cross_entropy",
]
