"""The checkpointing strategies of a run (memsim/passes/checkpoint.py), as one writes them with transformers and torch.

    {plan: [[8, full], [24, none]]} gives each its own; none | full | reentrant | sqrt | selective | megatron | offload | {every: k} | {first: k} | {segments: n} | {save: [matmul, attention, silu]}
"""
import math
import sys
from functools import partial

# what `save` may name → aten operators; matmul and attention are the list of torchtitan and of PyTorch's tutorials
SAVED = {
    "matmul": ["mm", "addmm", "bmm", "baddbmm"],
    "attention": ["_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"],
    "add": ["add.Tensor"],
    "cast": ["_to_copy"],
    "cat": ["cat"],
    "clone": ["clone"],
    "dropout": ["native_dropout"],
    "gelu": ["gelu"],
    "layer_norm": ["native_layer_norm"],
    "mean": ["mean.dim"],
    "mul": ["mul.Tensor"],
    "neg": ["neg"],
    "rsqrt": ["rsqrt"],
    "silu": ["silu"],
    "softmax": ["_softmax"],
    "square": ["pow.Tensor_Scalar"],
}


def saved(strategy):
    """The names that a strategy saves, or None where it is not selective."""
    if strategy == "selective":
        return ["matmul", "attention"]
    return strategy.get("save") if isinstance(strategy, dict) else None


def every_layer(strategy):
    """A plan's strategies, layer by layer."""
    return [inner for count, inner in strategy["plan"] for _ in range(count)]


def enabling(strategy):
    """gradient_checkpointing_kwargs, or None where layers are not checkpointed by transformers."""
    if strategy in ("none", "offload", "megatron"):
        return None
    if saved(strategy) is not None:
        import torch
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        operators = []
        for name in saved(strategy):
            for text in SAVED[name]:
                packet, _, overload = text.partition(".")
                operators.append(getattr(getattr(torch.ops.aten, packet), overload or "default"))
        if "attention" in saved(strategy) and "flash_attn" in sys.modules:
            operators += [torch.ops.flash_attn._flash_attn_forward.default, torch.ops.flash_attn._flash_attn_varlen_forward.default]
        return {"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, operators)}
    return {"use_reentrant": strategy == "reentrant"}


def decoder_layers(model):
    """The ModuleList of decoder layers."""
    from torch import nn

    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError:  # older transformers checkpoints them from the model's forward
        return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and "attention" in " ".join(name for name, _ in m[0].named_modules()).replace("attn", "attention"))
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and all(isinstance(x, GradientCheckpointingLayer) for x in m))


def apply(model, strategy):
    """What transformers' own switch does not do."""
    if strategy == "offload":
        for layer in decoder_layers(model):
            layer.forward = offloaded(layer.forward)
    if strategy == "megatron":
        recompute_attention(model)
    if strategy == "sqrt":
        strategy = {"segments": round(math.sqrt(len(decoder_layers(model))))}
    if not isinstance(strategy, dict):
        return
    if "every" in strategy or "first" in strategy:
        layers = decoder_layers(model)
        chosen = [i % strategy["every"] == 0 if "every" in strategy else i < strategy["first"] for i in range(len(layers))]
        if not hasattr(layers[0], "_gradient_checkpointing_func"):
            return checkpoint_some(model, {layer for layer, wanted in zip(layers, chosen) if wanted})
        for layer, wanted in zip(layers, chosen):
            layer.gradient_checkpointing = wanted
    if "plan" in strategy:
        from torch.utils.checkpoint import checkpoint

        for layer, inner in zip(decoder_layers(model), every_layer(strategy), strict=True):
            options = enabling(inner)
            layer.gradient_checkpointing = options is not None
            layer._gradient_checkpointing_func = partial(checkpoint, **(options or {}))
            if inner == "offload":
                layer.forward = offloaded(layer.forward)
        recompute_attention(model, {i for i, inner in enumerate(every_layer(strategy)) if inner == "megatron"})
    if "segments" in strategy:
        join(decoder_layers(model), strategy["segments"])


def checkpoint_some(model, chosen):
    """Older transformers: the model hands the call of each layer to a function, which here checkpoints some and calls the others."""
    owner = next(m for m in model.modules() if hasattr(m, "_gradient_checkpointing_func"))
    checkpoint = owner._gradient_checkpointing_func
    owner._gradient_checkpointing_func = lambda call, *args: checkpoint(call, *args) if call.__self__ in chosen else call(*args)


def offloaded(forward):
    """A layer's forward, what it saves for backward kept in pinned host memory."""
    from torch.autograd.graph import save_on_cpu

    def run(*args, **kwargs):
        with save_on_cpu(pin_memory=True):
            return forward(*args, **kwargs)

    return run


def recompute_attention(model, which=None):
    """The attention function alone is checkpointed (Korthikanti et al. 2022, "selective activation recomputation")."""
    from transformers.integrations import flash_attention, sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layer = type(decoder_layers(model)[0])
    eager = sys.modules[layer.__module__].eager_attention_forward
    functions = {"sdpa": sdpa_attention.sdpa_attention_forward, "eager": eager, "flash_attention_2": flash_attention.flash_attention_forward}
    for name, function in functions.items():
        ALL_ATTENTION_FUNCTIONS[name] = recomputed(function, which)


def recomputed(function, which):
    """The function, checkpointed in these layers, or in all."""
    from torch.utils.checkpoint import checkpoint

    def attention(module, *args, **kwargs):
        if which is None or module.layer_idx in which:
            return checkpoint(function, module, *args, use_reentrant=False, **kwargs)
        return function(module, *args, **kwargs)

    return attention


def join(layers, count):
    """So many segments of consecutive layers, the first ones a layer longer where they do not come out even; each is checkpointed as one."""
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Segment(GradientCheckpointingLayer):
        def __init__(self, inner):
            super().__init__()
            self.inner = nn.ModuleList(inner)

        def forward(self, hidden_states, *args, **kwargs):
            for layer in self.inner:
                hidden_states = layer(hidden_states, *args, **kwargs)
            return hidden_states

    least, longer = divmod(len(layers), count)
    joined, at = [], 0
    for i in range(count):
        size = least + (i < longer)
        inner = list(layers)[at : at + size]
        at += size
        segment = Segment(inner)
        segment._gradient_checkpointing_func, segment.gradient_checkpointing = inner[0]._gradient_checkpointing_func, True
        for layer in inner:
            layer.gradient_checkpointing = False
        joined.append(segment.train(inner[0].training))
    del layers[:]
    layers.extend(joined)
