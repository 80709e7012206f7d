"""Parameters of the modules that decoders share, in module order."""

from __future__ import annotations

from memsim.framework.model import Parameter
from memsim.models.common.config import DecoderConfig


def biases(config: DecoderConfig) -> tuple[bool, bool]:
    """Returns two flags: True if q, k and v have biases, and True if o has one."""
    if config.model_type in ("qwen2", "qwen2_moe"):
        return config.fields.get("qkv_bias") is not False or config.model_type == "qwen2", False
    if config.model_type in ("mistral", "mixtral", "ministral"):
        return False, False
    return config.attention_bias, config.attention_bias


def norms_heads(config: DecoderConfig) -> bool:
    """True if each query and key head is normed."""
    return config.model_type in ("qwen3", "qwen3_moe")


def linear_parameters(name: str, out: int, inputs: int, dtype: str, bias: bool = False) -> list[Parameter]:
    """Returns the parameters of an nn.Linear."""
    rows = [Parameter(f"{name}.weight", (out, inputs), dtype, module="linear")]
    return [*rows, Parameter(f"{name}.bias", (out,), dtype, module="linear")] if bias else rows


def attention_parameters(config: DecoderConfig, dtype: str) -> list[Parameter]:
    """Returns the parameters of LlamaAttention and Qwen3Attention, in module order."""
    d, hidden = config.head_dim, config.hidden_size
    bias, bias_o = biases(config)
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows = linear_parameters("self_attn.q_proj", q, hidden, dtype, bias)
    rows += linear_parameters("self_attn.k_proj", kv, hidden, dtype, bias)
    rows += linear_parameters("self_attn.v_proj", kv, hidden, dtype, bias)
    rows += linear_parameters("self_attn.o_proj", hidden, q, dtype, bias_o)
    if norms_heads(config):
        rows += [Parameter(f"self_attn.{name}.weight", (d,), dtype, module="norm") for name in ("q_norm", "k_norm")]
    return rows


def norm_parameters(config: DecoderConfig, dtype: str) -> list[Parameter]:
    """Returns the parameters of a layer's two norms."""
    return [
        Parameter(f"{name}.weight", (config.hidden_size,), dtype, module="norm")
        for name in ("input_layernorm", "post_attention_layernorm")
    ]


def mlp_parameters(name: str, hidden: int, inner: int, dtype: str, bias: bool = False) -> list[Parameter]:
    """Returns the parameters of LlamaMLP."""
    rows = linear_parameters(f"{name}.gate_proj", inner, hidden, dtype, bias)
    rows += linear_parameters(f"{name}.up_proj", inner, hidden, dtype, bias)
    return rows + linear_parameters(f"{name}.down_proj", hidden, inner, dtype, bias)
