"""What recomputing costs, by the time estimate, against what was measured: Korthikanti et al. 2022, Reducing Activation
Recomputation in Large Transformer Models (arXiv:2205.05198), table 4 for 22B, and section 6.2 for 530B and 1T.

    python benchmarks/recomputation.py

A layer of the paper's models (its table 3) forward and backward on an A100, attention composed of operators as there:
full checkpointing, and its selective one, of the attention's core. The paper's layers are divided over eight GPUs, with
the traffic between them; here they are on one.
"""

from __future__ import annotations

from memsim import Run, simulate
from memsim.cli.console import out
from memsim.cli.tables import grid

# parameters → hidden size, heads, micro-batch; overheads measured: full, selective (a share of forward and backward
# without recomputation)
MODELS = {
    "22B": (6144, 64, 4, 0.39, 0.07),
    "175B": (12288, 96, 1, None, None),
    "530B": (20480, 128, 1, 0.36, 0.02),
    "1T": (25600, 160, 1, 0.36, 0.02),
}
SEQUENCE, VOCABULARY = 2048, 51200
FEW, MORE = 2, 4  # layers, whose difference is that of one layer and no embedding, head or optimizer


def layer_seconds(hidden: int, heads: int, batch: int, strategy: str) -> float:
    """Of forward, backward and recomputation of one layer."""

    def seconds(layers: int) -> float:
        model = {
            "model_type": "gpt2",
            "n_embd": hidden,
            "n_head": heads,
            "n_layer": layers,
            "vocab_size": VOCABULARY,
            "n_positions": SEQUENCE,
        }
        run = Run(
            model=model,
            batch={"size": batch, "sequence": SEQUENCE},
            precision="fp16",
            attention="eager",
            checkpointing=strategy,
            optimizer="sgd",
            device="a100-80gb",
            device_memory_gib=2**16,  # what fits is not the question here
            steps=2,
        )
        time = simulate(run).step_time
        assert time is not None
        return time.total - time.optimizer

    return (seconds(MORE) - seconds(FEW)) / (MORE - FEW)


def main() -> None:
    """Prints the table."""
    rows = grid(
        "model",
        "full",
        "measured",
        "selective",
        "measured",
        title="Time that recomputation adds to a layer's forward and backward",
    )
    for name, (hidden, heads, batch, full, selective) in MODELS.items():
        none = layer_seconds(hidden, heads, batch, "none")
        cells = []
        for strategy, measured in (("full", full), ("megatron", selective)):
            added = layer_seconds(hidden, heads, batch, strategy) / none - 1
            cells += [f"{added:.1%}", "" if measured is None else f"{measured:.0%}"]
        rows.add_row(name, *cells)
    out().print(rows)


if __name__ == "__main__":
    main()
