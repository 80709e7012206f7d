"""Rotary frequencies that depend on the length: LongRoPE (Ding et al. 2024, arXiv:2402.13753) and dynamic NTK scaling,
as transformers computes them (modeling_rope_utils.dynamic_rope_update, _compute_longrope_parameters).
"""

from __future__ import annotations

from collections.abc import Mapping

from memsim.errors import InputError, Unsupported
from memsim.framework import functional as F
from memsim.framework.builder import Builder, module_call
from memsim.framework.frames import release_in_slot_order
from memsim.framework.settings import Settings
from memsim.framework.tensor import Tensor
from memsim.models.common.config import DecoderConfig


def rope_of(config: DecoderConfig) -> Mapping[str, object]:
    """What the config says of its rotary embedding, under the older name or the newer (convert_rope_params_to_dict)."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.fields.get(key)
        if isinstance(rope, Mapping) and rope:
            return rope
    return {}


def rope_type(config: DecoderConfig) -> str:
    """The kind of rotary embedding that the config asks for."""
    rope = rope_of(config)
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    return "longrope" if config.model_type == "phi3" and kind in ("su", "yarn") else kind  # names that it had before


def rotary_dim(config: DecoderConfig, default: float, key: str = "partial_rotary_factor") -> int:
    """How many elements of a head turn. Raises InputError where that is no number of pairs within it."""
    given = rope_of(config).get(key)
    share = config.fields.get(key, default) if given is None else given
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 1:
        raise InputError(f"model.{key}: {share!r} is not a share from above 0 to 1")
    rotary = int(config.head_dim * share)
    if rotary < 2 or rotary % 2:
        raise InputError(
            f"model.{key}: {share} of a head of {config.head_dim} is {rotary}, which is no number of pairs, and these "
            "turn together"
        )
    return rotary


def check_longrope(config: DecoderConfig, dim: int) -> None:
    """Raises InputError where the factors of LongRoPE are missing, or not one for each of `dim` / 2 frequencies."""
    for key in ("short_factor", "long_factor"):
        factors = rope_of(config).get(key)
        if not isinstance(factors, (list, tuple)) or len(factors) != dim // 2:
            found = "missing" if factors is None else f"not {dim // 2} numbers"
            raise InputError(
                f"model.rope_scaling.{key}: {found}; longrope takes one for each of the {dim // 2} frequencies, as the "
                "model's own config.json has them"
            )


def update(b: Builder, config: DecoderConfig, settings: Settings, position_ids: Tensor, dim: int) -> None:
    """Runs the first part of the rotary embedding's forward, for heads of which `dim` elements turn. Raises
    Unsupported.
    """
    kind = rope_type(config)
    if kind == "longrope":
        longrope_frequency_update(b, position_ids, dim)
    if kind == "dynamic":
        if settings.sequence > config.max_position_embeddings:
            beyond = f"beyond model.max_position_embeddings {config.max_position_embeddings}, where it grows"
            raise Unsupported(
                f"batch.sequence: {settings.sequence} with rope_type dynamic {beyond}, is not supported yet; fewer "
                "tokens are"
            )
        dynamic_frequency_update(b, position_ids)


@module_call
def dynamic_frequency_update(b: Builder, position_ids: Tensor) -> None:
    """Asks whether the last position is beyond the range of the frequencies, which it is not here."""
    with b.module("rotary_emb"), b.no_grad(), b.no_autocast():
        seq_len = b.op("add_scalar", b.op("reduce_all", position_ids, label="position_ids.max"))
        for question in ("seq_len > max_seq_len_cached", "seq_len < original_max_seq_len"):
            answer = F.create(b, question, (), "bool")
            del answer
        del seq_len


@module_call
def longrope_frequency_update(b: Builder, position_ids: Tensor, dim: int) -> None:
    """Takes the long or the short frequencies, [D / 2], by the last position. The long ones are made when it first
    runs, and kept.
    """
    with b.module("rotary_emb"), b.no_grad(), b.no_autocast():
        seq_len = b.op("add_scalar", b.op("reduce_all", position_ids, label="position_ids.max"))
        b.held.append(long_frequencies(b, dim))
        later = F.create(b, "seq_len > original", (), "bool")
        inv_freq = F.create(b, "where", (dim // 2,), "fp32")
        del later
        del seq_len
        del inv_freq


@module_call
def long_frequencies(b: Builder, dim: int) -> Tensor:
    """Runs _compute_longrope_parameters on the device."""
    shape = (dim // 2,)

    def once(label: str, shape: tuple[int, ...], dtype: str = "fp32") -> Tensor:
        return b.op("create", shape=shape, dtype=dtype, label=label, once=True)

    ext_factors = once("ext_factors", shape)
    arange = once("arange", shape, "int64")
    as_float = once("arange.float", shape)
    del arange
    inv_freq_shape = once("inv_freq_shape", shape)
    del as_float
    power = once("base ** inv_freq_shape", shape)
    base = once("base", (), "int64")
    del base
    product = once("ext_factors * base ** inv_freq_shape", shape)
    del power
    reciprocal = once("reciprocal", shape)
    inv_freq = once("long_inv_freq", shape)
    del reciprocal
    del product
    del ext_factors
    del inv_freq_shape
    return inv_freq


release_in_slot_order(__name__)
