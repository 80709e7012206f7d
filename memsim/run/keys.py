"""The parts of a Run that are mappings, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from memsim.cost.efficiency import Efficiency
from memsim.run import values


class Part(BaseModel):
    """The base of all parts of a Run: no key beyond those declared, and no change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Part):
    """Says how the model is trained."""

    kind: Literal["full", "lora", "qlora", "ia3", "qia3"] = "full"
    rank: Annotated[int, values.whole(1, 2**16)] = 8
    # or names of modules, or a pattern; null: PEFT's own defaults for (IA)³
    targets: Annotated[str | tuple[str, ...] | None, BeforeValidator(values.targets)] = "all-linear"
    dropout: Annotated[float, values.number(lambda p: 0 <= p < 1, "a probability from 0 to below 1")] = 0.0
    quantization: Literal["nf4", "int8", "gptq", "awq"] = "nf4"  # qlora, qia3: how the frozen weights are stored
    group_size: Annotated[int, values.whole(1, 2**20)] = 128  # gptq, awq: input features that share a scale
    double_quant: Annotated[bool, BeforeValidator(values.flag)] = True
    dora: Annotated[bool, BeforeValidator(values.flag)] = False
    rslora: Annotated[bool, BeforeValidator(values.flag)] = False  # another scaling, of the same size
    bias: Literal["none", "all", "lora_only"] = "none"  # which of the model's biases train beside the adapters
    # the only layers that have adapters (PEFT's layers_to_transform)
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(values.layers)] = None
    # ends of names of parameters that have adapters of their own: experts, routers
    target_parameters: Annotated[tuple[str, ...], BeforeValidator(values.modules)] = ()
    # ends of names of modules that train as a whole
    modules_to_save: Annotated[tuple[str, ...], BeforeValidator(values.modules)] = ()
    # (IA)³: targets whose input is scaled instead of their output
    feedforward: Annotated[tuple[str, ...] | None, BeforeValidator(values.modules)] = None
    # qlora, qia3: who casts what is not quantized; TRL's trainer casts the head and embeddings back to bf16
    casts: Literal["peft", "trl", "none"] = "peft"

    @model_validator(mode="before")
    @classmethod
    def _default_targets(cls, data: Any) -> Any:
        """Fills in the default targets: all-linear, or none for (IA)³, whose targets PEFT knows by model_type."""
        if isinstance(data, Mapping) and data.get("targets") is None:
            return {**data, "targets": None if data.get("kind") in ("ia3", "qia3") else "all-linear"}
        return data


class Train(Part):
    """Says which parameters train, by patterns of their names (passes/freeze.py), with method full."""

    only: Annotated[tuple[str, ...], BeforeValidator(values.patterns)] = ()
    freeze: Annotated[tuple[str, ...], BeforeValidator(values.patterns)] = ()


class Batch(Part):
    """The sizes of a batch: sequences in a micro-batch, tokens in a sequence, micro-batches in a step. The tokens of an
    image follow from its model, whatever `sequence` says.
    """

    size: Annotated[int, values.whole(1, 2**20)] = 1
    sequence: Annotated[int, values.whole(1, 2**24)] = 512
    accumulation: Annotated[int, values.whole(1, 2**12)] = 1
    # share of the tokens that is padding; with any, the batch has an attention mask
    padding: Annotated[
        float, values.number(lambda share: 0 <= share < 1, "a share of the tokens from 0 to below 1")
    ] = 0.0
    # T5: number of tokens that the decoder gets; null: `sequence`
    target: Annotated[int, values.whole(1, 2**24)] | None = None


class EfficiencyKeys(Part):
    """How much of the device's data sheet is reached, for estimates of time (cost/roofline.py): shares of its rates,
    and microseconds of a launch.
    """

    matmul: Annotated[float, values.SHARE] = Efficiency.matmul
    attention: Annotated[float, values.SHARE] = Efficiency.attention
    memory: Annotated[float, values.SHARE] = Efficiency.memory
    pcie: Annotated[float, values.SHARE] = Efficiency.pcie
    launch_us: Annotated[float, values.number(lambda us: us > 0, "a positive number of microseconds")] = round(
        1e6 * Efficiency.launch, 3
    )
