"""Trains a Hugging Face model for a few steps on the virtual GPU and writes what PyTorch's allocator did.

    python record.py RUN.yaml OUT        one run
    OUT.json   the run, the versions, and per step: peaks, bytes held, retries
    OUT.npz    with --tape: every allocator event (action, address, bytes, stream) and the phase that it belongs to

The oracle's recorder (../../../shared/oracle/record.py), with the keys that memsim adds: train, batch.padding, addresses, grad_scaler, optimizer_in_backward,
those of method below (adapter_config) with quantization int8, torch's and bitsandbytes' other optimizers, the strategies of checkpointing.py, and models
that are no decoders (tasks.py).
The run's keys are in README.md beside that file. Real PyTorch, transformers, PEFT and bitsandbytes decide every
allocation; only the kernels do nothing, so every value on the device reads as zero.
"""
import argparse
import ctypes
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import time
from importlib import metadata

import yaml

import checkpointing
import tasks
from flash2 import build as flash_build

ACTIONS = ["alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "snapshot", "oom"]
HERE = pathlib.Path(__file__).parent


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tape", action="store_true", help="keep every allocator event")
    parser.add_argument("--stacks", action="store_true", help="with --tape, keep Python stacks in OUT.pickle (large)")
    return parser.parse_args()


def read_run(path):
    run = yaml.safe_load(path.read_text())
    base = dict(method={"kind": "full"}, precision="bf16", attention="sdpa", checkpointing="none", optimizer="adamw", clip_grad_norm=None,
                fsdp=1, allocator="", device_memory_gib=80, sm=80, steps=3)
    run = {**base, **run}
    run["batch"] = {"size": 1, "sequence": 512, "accumulation": 1, **run.get("batch", {})}
    if isinstance(run["model"], str):
        run["model_config"] = json.loads((HERE.parents[1] / "memsim" / "catalog" / "models.json").read_text())[run["model"]]
    else:
        run["model_config"] = run["model"]
    return run


def materialize(module, torch, quantize=None):
    """Moves a meta module to the device a parameter at a time, in module order, as .to("cuda") does."""
    from torch import nn

    tied = {}
    for name, child in module.named_modules():
        for key, value in list(child._parameters.items()):
            if value is None or value.device.type != "meta":
                continue
            if id(value) not in tied:
                quantized = quantize(child, key) if quantize else None
                tied[id(value)] = quantized if quantized is not None else nn.Parameter(torch.empty_like(value, device="cuda"), requires_grad=value.requires_grad)
            child._parameters[key] = tied[id(value)]
        for key, value in list(child._buffers.items()):
            if value is not None and value.device.type == "meta":
                child._buffers[key] = torch.empty_like(value, device="cuda")


def unpacked(padded):
    """Device values read as zero, which transformers takes for packed sequences and gives a mask; true positions and masks would tell it otherwise."""
    try:
        from transformers import masking_utils as masking
    except ImportError:  # older transformers does not ask
        return
    packed, every = getattr(masking, "find_packed_sequence_indices", None), getattr(masking, "fast_all", None)
    if packed:
        masking.find_packed_sequence_indices = lambda positions: (packed(positions), None)[1]
    if every:
        masking.fast_all = lambda values: (every(values), not padded)[1]


def with_flash_attn(run):
    """Puts flash-attn (flash2/build.py) where it can be imported. With padding, the process starts anew with told.c ahead of the virtual GPU."""
    folder = flash_build.folder()
    if not (folder / "flash_attn_2_cuda.so").exists():
        sys.exit(f"flash_attention_2 needs flash-attn, which {flash_build.__file__} builds")
    sys.path.insert(0, str(folder))
    preloaded = os.environ.get("LD_PRELOAD", "")
    if run["batch"].get("padding") and "libvgpu" in preloaded and "libtold" not in preloaded:
        os.environ["LD_PRELOAD"] = f"{folder / 'libtold.so'}:{preloaded}"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def unpadded(batch):
    """transformers reads from the device how many tokens are no padding, and the longest sequence's length: on the virtual GPU it is told."""
    from transformers import modeling_flash_attention_utils as utils

    asked, told, length = utils._get_unpad_data, ctypes.CDLL(None), real_tokens(batch)

    def get_unpad_data(attention_mask):
        for value in (length * batch["size"], length):
            told.tell(ctypes.c_longlong(value))
        return asked(attention_mask)

    utils._get_unpad_data = get_unpad_data


def real_tokens(batch):
    """Tokens of a sequence that are no padding."""
    return batch["sequence"] - math.ceil(batch["padding"] * batch["sequence"])


def build(run, torch):
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401  ahead of torch.device("meta"), under which torch 2.6 cannot import all of itself

    if "libvgpu" in os.environ.get("LD_PRELOAD", ""):
        unpacked(bool(run["batch"].get("padding")))
        if run["attention"] == "flash_attention_2" and run["batch"].get("padding"):
            unpadded(run["batch"])
    fields = dict(run["model_config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config._attn_implementation = run["attention"]
    config.use_cache = False
    weights = torch.float32 if run["precision"] in ("fp32", "amp-bf16", "amp-fp16") or run["fsdp"] > 1 else torch.float16 if run["precision"] == "fp16" else torch.bfloat16
    torch.set_default_dtype(weights)
    with torch.device("meta"):
        model = tasks.from_config(config, run["model_config"])
    torch.set_default_dtype(torch.float32)
    kind, quantize = run["method"]["kind"], None
    quantized = kind in ("qlora", "qia3")
    if quantized:
        import bitsandbytes as bnb
        from transformers import BitsAndBytesConfig
        from transformers.integrations import replace_with_bnb_linear

        eight = run["method"].get("quantization", "nf4") == "int8"
        bits = BitsAndBytesConfig(load_in_8bit=True) if eight else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=run["method"].get("double_quant", True), bnb_4bit_compute_dtype=torch.bfloat16)
        model = replace_with_bnb_linear(model, modules_to_not_convert=tasks.not_quantized(model, run["model_config"]), quantization_config=bits)
        model.is_loaded_in_4bit, model.is_loaded_in_8bit = not eight, eight

        def quantize(child, key):
            if isinstance(child, bnb.nn.Linear8bitLt) and key == "weight":
                host = torch.empty(child.out_features, child.in_features, dtype=torch.bfloat16)
                return bnb.nn.Int8Params(host, requires_grad=False, has_fp16_weights=False).to("cuda")
            if isinstance(child, bnb.nn.Linear4bit) and key == "weight":
                host = torch.empty(child.out_features, child.in_features, dtype=torch.bfloat16)
                return bnb.nn.Params4bit(host, requires_grad=False, quant_type="nf4", compress_statistics=run["method"].get("double_quant", True)).to("cuda")

    if run["fsdp"] > 1:
        model = shard(model, run, torch)
        model.to_empty(device="cuda")
    else:
        materialize(model, torch, quantize)
    options = checkpointing.enabling(run["checkpointing"])
    checkpoint = options is not None
    if quantized:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpoint, gradient_checkpointing_kwargs=options)
    if kind != "full":
        from peft import get_peft_model

        model = get_peft_model(model, adapter_config(run["method"], tasks.peft_task(run["model_config"])))
    if checkpoint and not quantized:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if kind in ("lora", "ia3"):
            model.enable_input_require_grads()
    checkpointing.apply(model, run["checkpointing"])
    freeze(model, run.get("train", {}))
    return model.train()


def adapter_config(method, task):
    """PEFT's LoraConfig or IA3Config of the run's method."""
    from peft import IA3Config, LoraConfig

    saved = {key: method[key] for key in ("modules_to_save", "target_parameters") if method.get(key)}  # older PEFT knows no target_parameters
    if method["kind"] in ("ia3", "qia3"):
        return IA3Config(target_modules=method.get("targets"), feedforward_modules=method.get("feedforward"), task_type=task, **saved)
    return LoraConfig(
        r=method.get("rank", 8), lora_alpha=16, lora_dropout=method.get("dropout", 0.0), target_modules=method.get("targets", "all-linear"), task_type=task,
        use_dora=method.get("dora", False), use_rslora=method.get("rslora", False), bias=method.get("bias", "none"), layers_to_transform=method.get("layers"), **saved,
    )


def freeze(model, train):
    """`train: {only: [...], freeze: [...]}`, by the patterns of memsim/passes/freeze.py."""
    import fnmatch
    import re

    def matches(pattern, name):
        pattern = re.sub(r"^(model|transformer|gpt_neox|bert|vit)\.", "", pattern)
        return fnmatch.fnmatchcase(name, pattern) if set(pattern) & set("*?[") else f".{pattern}." in f".{name}."

    for name, parameter in model.named_parameters():
        name = re.sub(r"^((en|de)coder)\.block\.", r"\1.layers.", name)
        name = re.sub(r"^(h|encoder\.layer)\.", "layers.", re.sub(r"^(model|transformer|gpt_neox|bert|vit)\.", "", name))
        wanted = not train.get("only") or any(matches(pattern, name) for pattern in train["only"])
        if train and not (wanted and not any(matches(pattern, name) for pattern in train.get("freeze", []))):
            parameter.requires_grad_(False)


def shard(model, run, torch):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=run["fsdp"], store=FakeStore())
    torch.cuda.set_device(0)
    mesh = init_device_mesh("cuda", (run["fsdp"],))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


NAMES = yaml.safe_load((HERE / "optimizers.yaml").read_text())  # optimizer → class and arguments


def optimizers(run, parameters, torch, hidden=frozenset()):
    """The optimizers of a run, in the order in which they step. `hidden` are the ids of the parameters of decoder layers and of adapters.

    `muon` is torch.optim.Muon for what of them has two dimensions (matrices: Muon takes nothing else), and AdamW for embeddings, head, norms and biases.
    """
    if run["optimizer"] != "muon":
        return [make_optimizer(run["optimizer"], parameters, torch)]
    matrices = [p for p in parameters if p.ndim == 2 and id(p) in hidden]
    rest = [p for p in parameters if p.ndim != 2 or id(p) not in hidden]
    return [make_optimizer(name, some, torch) for name, some in (("muon", matrices), ("adamw", rest)) if some]


def make_optimizer(name, parameters, torch):
    package, kind, arguments = NAMES[name]
    if package == "bitsandbytes":
        import bitsandbytes

        return getattr(bitsandbytes.optim, kind)(parameters, lr=1e-4, **arguments)
    return getattr(torch.optim, kind)(parameters, lr=1e-4, **arguments)


def hidden_ids(model):
    """Ids of the parameters of the decoder layers, and of LoRA's matrices wherever they are."""
    inside = re.compile(r"(^|\.)(layers|h|encoder\.layer|block)\.\d+\.|lora_")
    return {id(p) for name, p in model.named_parameters() if inside.search(name)}


def step_in_backward(run, model, parameters, torch):
    """PyTorch's tutorial "How to save memory by fusing the optimizer step into the backward pass": an optimizer for each parameter, stepped by a hook."""
    hidden = hidden_ids(model)
    of = {p: optimizers(run, [p], torch, hidden)[0] for p in parameters}

    def hook(parameter):
        of[parameter].step()
        of[parameter].zero_grad()

    for p in parameters:
        p.register_post_accumulate_grad_hook(hook)


def main():
    args = parse()
    run = read_run(args.run)
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = run["allocator"]
    os.environ["VGPU_SM"] = str(run["sm"])
    if run.get("addresses") == "linux":
        os.environ["VGPU_VA"] = "linux"
    os.environ["VGPU_MEMORY"] = str(int(run["device_memory_gib"] * 2**30))
    if run["attention"] == "flash_attention_2":
        with_flash_attn(run)
    started = time.time()
    import torch
    import transformers

    torch.backends.cuda.enable_cudnn_sdp(False)
    if "libvgpu" in os.environ.get("LD_PRELOAD", ""):
        torch.backends.cudnn.enabled = False  # which does not come up on the virtual GPU: convolutions are PyTorch's own
    if args.tape:
        torch.cuda.memory._record_memory_history(max_entries=20_000_000, context="all" if args.stacks else None, stacks="python")
    by_metadata = hasattr(torch._C, "_cuda_setMemoryMetadata")  # before torch 2.9 a snapshot, an event itself, marks the place
    phases = []

    def mark(name):
        phases.append(name)
        if by_metadata:
            torch._C._cuda_setMemoryMetadata(name)
        elif args.tape:
            torch._C._cuda_memorySnapshot()

    mark("load")
    model = build(run, torch)
    loaded = torch.cuda.memory_allocated()
    trainable = [p for p in model.parameters() if p.requires_grad]
    in_backward = run.get("optimizer_in_backward", False)
    stepped = step_in_backward(run, model, trainable, torch) or [] if in_backward else optimizers(run, trainable, torch, hidden_ids(model))
    scaler = torch.amp.GradScaler("cuda") if run.get("grad_scaler") else None
    steps, oom = [], None
    autocast = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}.get(run["precision"], torch.bfloat16 if run["method"]["kind"] in ("qlora", "qia3") else None)
    try:
        for step in range(run["steps"]):
            row = {"step": step}
            torch.cuda.reset_peak_memory_stats()
            for _ in range(run["batch"]["accumulation"]):
                mark(f"{step}/forward")
                batch = tasks.batch_of(run["model_config"], run["batch"], torch)
                with torch.autocast("cuda", autocast or torch.bfloat16, enabled=autocast is not None):
                    loss = model(**batch).loss
                row["peak_after_forward"] = torch.cuda.max_memory_allocated()
                mark(f"{step}/backward")
                (scaler.scale(loss) if scaler else loss).backward()
                del loss
                batch.clear()
                row["peak_after_backward"] = torch.cuda.max_memory_allocated()
            mark(f"{step}/optimizer")
            if run["clip_grad_norm"]:
                for optimizer in stepped if scaler else ():
                    scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(trainable, run["clip_grad_norm"])
            for optimizer in stepped:
                scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
            for optimizer in stepped:
                optimizer.zero_grad(set_to_none=True)
            stats = torch.cuda.memory_stats()
            row |= {"peak_allocated": stats["allocated_bytes.all.peak"], "peak_requested": stats["requested_bytes.all.peak"], "peak_reserved": stats["reserved_bytes.all.peak"],
                    "end_allocated": stats["allocated_bytes.all.current"], "end_reserved": stats["reserved_bytes.all.current"], "peak_segments": stats["segment.all.peak"],
                    "retries": stats["num_alloc_retries"], "ooms": stats["num_ooms"]}
            steps.append(row)
    except torch.cuda.OutOfMemoryError as error:
        oom = str(error).splitlines()[0]
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "flash_attn") if importlib.util.find_spec(name)}
    result = {"run": {k: v for k, v in run.items() if k != "model_config"}, "model_config": run["model_config"], "versions": versions, "device": torch.cuda.get_device_name(),
              "parameters": sum(p.numel() for p in model.parameters()), "trainable_parameters": sum(p.numel() for p in trainable), "loaded_allocated": loaded,
              "steps": steps, "oom": oom, "seconds": round(time.time() - started, 1)}
    if args.tape:
        result["tape"] = save_tape(args, torch, phases)
    pathlib.Path(f"{args.out}.json").write_text(json.dumps(result, indent=1))
    last = steps[-1] if steps else {}
    print(args.out.name, "oom" if oom else "", *(f"{k} {last.get(k, 0) / 2**30:.4f}" for k in ("peak_allocated", "peak_reserved")), f"{result['seconds']} s")


def save_tape(args, torch, phases):
    import numpy as np

    snapshot = torch.cuda.memory._snapshot()
    events = snapshot["device_traces"][0]
    names = list(dict.fromkeys(phases))
    index = {name: i for i, name in enumerate(names)}
    at, phase, kept = 0, [], []
    marks = iter(phases)
    for event in events:
        if event["action"] == "snapshot":
            at = index[next(marks, names[at])]
            continue
        if event.get("user_metadata"):
            at = index[event["user_metadata"]]
        elif "user_metadata" in event and names[at].endswith("forward"):  # the backward pass runs on autograd's own thread, which carries no mark
            at = index[names[at].replace("forward", "backward")]
        phase.append(at)
        kept.append(event)
    events = kept
    np.savez_compressed(f"{args.out}.npz", action=np.array([ACTIONS.index(e["action"]) for e in events], np.uint8), address=np.array([e.get("addr", e.get("device_free", 0)) for e in events], np.uint64),
                        bytes=np.array([e["size"] for e in events], np.int64), stream=np.array([e["stream"] for e in events], np.uint64),
                        phase=np.array(phase, np.uint8), actions=np.array(ACTIONS), phases=np.array(names))
    if args.stacks:
        import pickle

        pickle.dump(snapshot, open(f"{args.out}.pickle", "wb"))
    return {"events": len(events), "settings": snapshot["allocator_settings"]}


if __name__ == "__main__":
    main()
