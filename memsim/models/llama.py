"""Llama, Mistral, Qwen2 and Qwen3 dense decoders (transformers/models/{llama,mistral,qwen2,qwen3}/modeling_*.py)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.model import Model, Parameter
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.assemble import HOLD, HOLD_POSITIONS_FIRST, assemble
from memsim.models.common.attention import attend
from memsim.models.common.causal_lm import Parts
from memsim.models.common.config import DecoderConfig, check_heads_divide, decoder_config, integer
from memsim.models.common.layers import pre_norm
from memsim.models.common.mlp import activation, mlp_forward
from memsim.models.common.norms import rms_norm
from memsim.models.common.parameters import attention_parameters, biases, mlp_parameters, norm_parameters, norms_heads
from memsim.models.common.refusals import check_supported
from memsim.models.common.rotary import apply_rotary_pos_emb
from memsim.models.common.typed import SLIDING, assemble_types, layer_types
from memsim.stacks.known import GOLDEN

DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
}


def read_config(fields: Mapping[str, object], ropes: Collection[str] = ()) -> DecoderConfig:
    """The fields with their family's defaults."""
    config = decoder_config(fields, **DEFAULTS[str(fields["model_type"])])
    check_supported(config, dropout=True, ropes=ropes)
    if config.model_type == "llama":
        check_heads_divide(config, "LlamaConfig")
    if config.model_type == "mistral":
        if "sliding_window" in fields and fields["sliding_window"] is None:
            return replace(config, sliding_window=None)
        return config
    types = config.fields.get("layer_types")
    if config.model_type in ("qwen2", "qwen3") and not config.fields.get("use_sliding_window"):
        if isinstance(types, (list, tuple)) and SLIDING in types:
            raise InputError(
                f"model.layer_types: {SLIDING} needs model.use_sliding_window: true with {config.model_type}, which "
                "has no window without"
            )
    elif config.model_type in ("qwen2", "qwen3"):
        return (
            replace(config, sliding_window=integer(config.fields, "sliding_window", 4096))
            if config.fields.get("sliding_window", 4096)
            else config
        )
    return replace(config, sliding_window=None)


@module_call
def self_attention(
    b: Builder,
    config: DecoderConfig,
    settings: Settings,
    hidden_states: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """LlamaAttention.forward; the weights that it returns live in the layer's `_`."""
    with b.module("self_attn"):
        batch, sequence, _ = hidden_states.shape
        bias, bias_o = biases(config)

        def heads(name: str, count: int) -> Tensor:
            states = F.linear(b, hidden_states, name, count * config.head_dim, settings.dtype, bias)
            states = b.op("view", states, shape=(batch, sequence, count, config.head_dim))
            if norms_heads(config) and name != "v_proj":
                states = rms_norm(b, states, name[0] + "_norm", settings.dtype)
            return F.transpose(b, states, 1, 2)

        query_states = heads("q_proj", config.num_attention_heads)
        key_states = heads("k_proj", config.num_key_value_heads)
        value_states = heads("v_proj", config.num_key_value_heads)
        query_states, key_states = apply_rotary_pos_emb(b, query_states, key_states, cos, sin)
        return attend(b, config, settings, query_states, key_states, value_states, mask, bias_o)


@module_call
def mlp(b: Builder, config: DecoderConfig, settings: Settings, x: Tensor) -> Tensor:
    """LlamaMLP.forward, a layer's own."""
    return mlp_forward(
        b,
        x,
        "mlp",
        config.intermediate_size,
        settings.dtype,
        activation(config),
        config.mlp_bias and config.model_type in ("llama", "granite"),
    )


decoder_layer = pre_norm(self_attention, mlp)


def layer_parameters(config: DecoderConfig, dtype: str) -> tuple[Parameter, ...]:
    """A decoder layer's parameters in module order."""
    bias = config.mlp_bias and config.model_type in ("llama", "granite")
    mlp_rows = mlp_parameters("mlp", config.hidden_size, config.intermediate_size, dtype, bias)
    return (*attention_parameters(config, dtype), *mlp_rows, *norm_parameters(config, dtype))


def build(fields: Mapping[str, object], settings: Settings) -> Model:
    """The model of these Hugging Face config fields. Raises InputError, Unsupported."""
    golden = settings.stack is GOLDEN
    config = read_config(fields, ("dynamic",) if golden else ())
    rows = layer_parameters(config, settings.dtype)
    parts = Parts(
        lambda b, x, name: rms_norm(b, x, name, settings.dtype), mask_arguments=config.model_type in ("qwen2", "qwen3")
    )
    if config.model_type in ("qwen2", "qwen3") and config.sliding_window is not None:
        if not golden:
            raise Unsupported(
                f"model.use_sliding_window: true with stack {settings.stack.name} is not supported yet; false is"
            )
        full = integer(config.fields, "max_window_layers", 28) if config.fields.get("max_window_layers", 28) else 0
        types = layer_types(config, lambda layer: layer >= full)
        if SLIDING in types:
            return assemble_types(config, settings, parts, types, [decoder_layer] * len(types), rows)
        config = replace(config, sliding_window=None)
    hold = HOLD_POSITIONS_FIRST if config.model_type == "mistral" else HOLD
    return assemble(config, settings, parts, decoder_layer, rows, hold)


release_in_slot_order(__name__)
