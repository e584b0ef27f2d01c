"""Language models as pure functions; the decoder is `jdc.models.decoder.decoder`."""

from jdc.models.base import BATCH_AXES, MESH_AXES, Cache, LanguageModel, Params
from jdc.models.cross_entropy import token_cross_entropy
from jdc.models.decoder_config import DecoderConfig, RopeScaling
from jdc.models.partition import check_partition

__all__ = [
  "BATCH_AXES",
  "MESH_AXES",
  "Cache",
  "DecoderConfig",
  "LanguageModel",
  "Params",
  "RopeScaling",
  "check_partition",
  "token_cross_entropy",
]
