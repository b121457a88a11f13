"""How long does it take to find out what is coupled in a model, and how much memory?

    python benchmarks/tracing.py [--only PATTERN] [--limit 60] [--jobs 1]

For each model, taskprune's ``trace`` and ``couple`` beside Torch-Pruning's ``build_dependency``
and ``get_all_groups`` and torch-kirigami's ``DependencyGraph.build`` and ``discover_candidates``.
Every measurement has a process of its own, one thread and a time limit; one that does not end is a
row too. Seconds and limit are processor time, which other programs on the machine do not add to;
memory is the rise of the process's peak, in MB. Importing a library is not measured. Ratios are
the peer's seconds over taskprune's.

The language model has 1.1 billion parameters in bfloat16, once with and once without content.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from architectures.torchvision_import import import_torchvision
from children import Outcome, limit_processor_time, report, run_all, run_child, watched
from peers import kirigami_groups, torch_pruning_groups
from protocol import record, show
from torch import nn

from taskprune import couple, trace
from taskprune.driving.nets import build_net

Built = tuple[nn.Module, Any]


def vision(name: str) -> Built:
    model = import_torchvision().models.get_model(name, weights=None)
    return model, torch.randn(1, 3, 224, 224)


def driving(scale: str, height: int, width: int) -> Built:
    return build_net(scale), torch.randn(1, 3, height, width)


def bert() -> Built:
    import_torchvision()  # transformers imports it
    transformers: Any = importlib.import_module("transformers")
    model: nn.Module = transformers.BertModel(transformers.BertConfig())
    return model, {"input_ids": torch.randint(0, 30522, (1, 128))}


def llama(device: str) -> Built:
    import_torchvision()
    transformers: Any = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model: nn.Module = transformers.LlamaForCausalLM(config)
            tokens = torch.zeros(1, 64, dtype=torch.long)
    finally:
        torch.set_default_dtype(before)
    return model, {"input_ids": tokens, "use_cache": False}


MODELS: dict[str, Callable[[], Built]] = {
    **{
        name: partial(vision, name)
        for name in ("resnet50", "densenet121", "densenet201", "vit_b_16", "swin_t", "maxvit_t")
    },
    "bert-base": bert,
    "llama 1.1 B": partial(llama, "cpu"),
    "llama 1.1 B, meta": partial(llama, "meta"),
    "driving n": partial(driving, "n", 192, 320),
    "driving l": partial(driving, "l", 640, 640),
}
LIBRARIES = ("taskprune", "torch-pruning", "torch-kirigami")


def measured(library: str, name: str, *, limit: float) -> Outcome:
    """Measure one library on one model, in this process, which ends at the limit."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval()
    size = sum(p.numel() for p in model.parameters())
    limit_processor_time(limit)
    try:
        with watched() as watch:
            if library == "taskprune":
                with watched() as tracing:
                    graph = trace(model, inputs)
                with watched() as coupling:
                    groups = len(couple(graph))
            elif library == "torch-pruning":
                groups = torch_pruning_groups(model, inputs)
            else:
                groups = kirigami_groups(model, inputs)
    except ModuleNotFoundError as error:
        return {"outcome": f"absent: {error}"}
    except Exception as error:  # noqa: BLE001 - a library that fails is a row
        return {"outcome": f"error: {type(error).__name__}: {str(error)[:160]}"}
    outcome: Outcome = {
        "outcome": "ok",
        "parameters": size,
        "seconds": watch.seconds,
        "megabytes": watch.megabytes,
        "groups": groups,
    }
    if library == "taskprune":
        outcome |= {"trace": tracing.seconds, "couple": coupling.seconds}
    return outcome


def shown(name: str, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return a row of the table."""
    ours = outcomes["taskprune"]
    row: dict[str, Any] = {
        "model": name,
        "trace s": ours.get("trace"),
        "couple s": ours.get("couple"),
        "both s": ours.get("seconds", ours["outcome"].partition(":")[0]),
        "MB": _whole(ours.get("megabytes")),
    }
    for library in LIBRARIES[1:]:
        peer = outcomes[library]
        row[f"{library} s"] = peer.get("seconds", peer["outcome"].partition(":")[0])
        row[f"{library} MB"] = _whole(peer.get("megabytes"))
        both = "seconds" in peer and "seconds" in ours
        row[f"{library} ratio"] = peer["seconds"] / ours["seconds"] if both else None
    return row


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="shell pattern of model names")
    parser.add_argument("--limit", type=float, default=60, help="seconds for a measurement")
    parser.add_argument("--jobs", type=int, default=1, help="measurements at the same time")
    parser.add_argument("--child", nargs=2, metavar=("LIBRARY", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        torch.set_num_threads(1)
        report(measured(*args.child, limit=args.limit))
        return
    names = [name for name in MODELS if fnmatchcase(name, args.only)]
    work = {
        f"{library} on {name}": partial(
            run_child, __file__, ["--child", library, name], limit=args.limit
        )
        for name in names
        for library in LIBRARIES
    }
    done = dict(run_all("tracing", work, jobs=args.jobs))
    rows: list[dict[str, Any]] = [
        {"name": name, **{library: done[f"{library} on {name}"] for library in LIBRARIES}}
        for name in names
    ]
    show("Finding what is coupled", [shown(row["name"], row) for row in rows])
    if args.only == "*":
        record("tracing", {"limit_s": args.limit, "rows": rows})


if __name__ == "__main__":
    main()
