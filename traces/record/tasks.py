"""What a model is trained for: the class that its config asks for, and the batch that this class takes.

    architectures   of the config, where it names a class with a head: [BertForSequenceClassification]; else the usual one of the model_type below
    num_labels      classes, where there are any
    batch.target    T5: tokens of the decoder (batch.sequence where it is not given)
"""
import math

USUAL = {"bert": "BertForMaskedLM", "vit": "ViTForImageClassification", "t5": "T5ForConditionalGeneration"}
PEFT_TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForConditionalGeneration": "SEQ_2_SEQ_LM", "ForCausalLM": "CAUSAL_LM"}


def architecture(config):
    """The name of the model's class, empty for a causal LM."""
    named = (config.get("architectures") or [""])[0]
    return named if "For" in named and config["model_type"] in USUAL else USUAL.get(config["model_type"], "")


def from_config(config, fields):
    """The model with random weights; `fields` are those of the run."""
    import torch
    import transformers

    name = architecture(fields)
    if not name:
        return transformers.AutoModelForCausalLM.from_config(config)
    if name == "T5ForConditionalGeneration" and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0  # as every published config has it
    model = getattr(transformers, name)._from_config(config)
    if model.dtype == torch.float16:  # from_pretrained leaves some modules in fp32 then
        for key, module in model.named_modules():
            if key.rpartition(".")[2] in (model._keep_in_fp32_modules or ()):
                module.float()
    return model


def peft_task(config):
    """PEFT's task_type, None where it has none for the class."""
    name = architecture(config)
    return next((task for end, task in PEFT_TASKS.items() if name.endswith(end)), None) if name else "CAUSAL_LM"


def not_quantized(model, config):
    """Modules that from_pretrained leaves as they are with bitsandbytes (quantizers/base.py, get_modules_to_not_convert), and the head that is to train."""
    if not architecture(config):
        return ["lm_head"]
    from transformers.quantizers.base import HfQuantizer

    return [*HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules), "classifier"]


def mask_of(size, sequence, padding, torch):
    """An attention mask of which that share of every sequence, rounded up, is padding."""
    mask = torch.ones(size, sequence, dtype=torch.long)
    mask[:, sequence - math.ceil(padding * sequence):] = 0
    return mask.to("cuda")


def batch_of(config, batch, torch):
    """The arguments of forward."""
    size, sequence, padding = batch["size"], batch["sequence"], batch.get("padding")
    name = architecture(config)

    def zeros(*shape, dtype=torch.long):
        return torch.zeros(*shape, dtype=dtype, device="cuda")

    if name == "ViTForImageClassification":
        edges = config.get("image_size", 224)
        height, width = edges if isinstance(edges, list) else (edges, edges)
        return {"pixel_values": zeros(size, config.get("num_channels", 3), height, width, dtype=torch.float32), "labels": zeros(size)}
    tokens = zeros(size, sequence)
    mask = {"attention_mask": mask_of(size, sequence, padding, torch)} if padding else {}
    if name == "T5ForConditionalGeneration":
        labels = zeros(size, batch.get("target") or sequence)
    elif name == "BertForSequenceClassification":
        labels = zeros(size)
    else:
        labels = torch.full((size, sequence), -100).to("cuda") if padding else tokens
    return {"input_ids": tokens, "labels": labels, **mask}
