"""Gemma 1 (transformers/models/gemma/modeling_gemma.py): a Llama with Gemma's norms and scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import Unsupported
from memsim.framework.model import Model
from memsim.framework.settings import Settings
from memsim.models.common.assemble import HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import decoder_config
from memsim.models.common.layers import pre_norm
from memsim.models.common.refusals import check_supported
from memsim.models.gemma import embed, rms_norm
from memsim.models.llama import layer_parameters, mlp, self_attention

decoder_layer = pre_norm(self_attention, mlp, rms_norm)


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises Unsupported."""
    defaults = {
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }
    config = decoder_config(fields, **defaults)
    check_supported(config, dropout=True)
    if config.fields.get("use_bidirectional_attention"):
        raise Unsupported("model.use_bidirectional_attention: true is not supported yet; false is")
    parts = Parts(lambda b, x, name: rms_norm(b, x, name, settings.dtype), embed=embed, embed_scale=True)
    return assemble(
        config, settings, parts, decoder_layer, layer_parameters(config, settings.dtype), HOLD_POSITIONS_FIRST
    )
