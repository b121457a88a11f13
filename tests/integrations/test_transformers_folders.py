"""A pruned model of transformers is the same model in a new process, or is refused by name."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from architectures.transformers_models import TRANSFORMERS_MODELS
from launched_processes import child_environment
from torch import nn

import taskprune
from taskprune.calling.outputs import flatten_outputs
from taskprune.commands.stock_models import stock_model
from taskprune.errors import CheckpointError, InputError, VerificationError
from taskprune.plan.plan import PruningPlan
from taskprune.testing import randomise_

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # those of a library that is not ours
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
    ),
]
KINDS = ("bert", "llama", "phi3", "yolos", "segformer")
"""An encoder, two decoders, one of which reads sizes from its configuration, a detector and a
network that segments."""


def case(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    own = next(a for a in TRANSFORMERS_MODELS if a.name == f"transformers/{name}")
    torch.manual_seed(0)
    return randomise_(own.make().eval(), seed=0), own.inputs()


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[taskprune.PruneResult, dict[str, torch.Tensor]]]:
    found = {}
    for name in KINDS:
        model, inputs = case(name)
        settings = taskprune.PruneSettings(verify=name == "bert")
        result = taskprune.prune(
            model, None, 0.3, example_inputs=inputs, importance="magnitude", settings=settings
        )
        found[name] = result, inputs
    return found


def test_folders_are_read_in_a_new_process_to_the_bit_and_deployed(
    results: dict[str, tuple[taskprune.PruneResult, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    from taskprune.integrations.transformers import save_pretrained

    models: dict[str, Any] = {}
    for name, (result, inputs) in results.items():
        models[name] = result.model
        save_pretrained(tmp_path / name, result.model, result.plan, report=result.report)
        torch.save(inputs, tmp_path / name / "inputs.pt")
    deployed: list[str] = []
    child = Path(__file__).with_name("reading_child.py")
    subprocess.run(
        [sys.executable, child, *(tmp_path / name for name in KINDS)],
        env=child_environment(),
        check=True,
    )
    for name, model in models.items():
        inputs = results[name][1]
        found = torch.load(tmp_path / name / "outputs.pt")
        with torch.no_grad():
            expected = flatten_outputs(model(**inputs))
            if model.can_generate():
                fixed = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
                expected["generated"] = model.generate(**inputs, use_cache=True, **fixed)
        assert found.keys() == expected.keys()
        for path, tensor in expected.items():
            assert torch.equal(found[path], tensor), (name, path)
        if (file := tmp_path / name / "model.onnx").exists():
            deployed.append(name)
            session = onnxruntime.InferenceSession(file)
            given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
            (logits,) = session.run(["logits"], given)
            torch.testing.assert_close(
                torch.from_numpy(logits), expected["logits"], rtol=1e-3, atol=1e-4
            )
    assert deployed == ["bert", "llama", "segformer"]


def test_the_card_says_what_was_done_and_the_report_what_would_not_load(
    results: dict[str, tuple[taskprune.PruneResult, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    from taskprune.integrations.transformers import save_pretrained

    result = results["bert"][0]
    model: Any = result.model
    assert any("`save_pretrained` of this BertFor" in note for note in result.report.notes)
    save_pretrained(
        tmp_path, model, result.plan, report=result.report, base_model="google-bert/bert-base"
    )
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: google-bert/bert-base\n")
    before, after = result.report.costs["params"]
    assert f"| parameters | {before:,} | {after:,} |" in card
    assert f"Verified: {result.report.verification}" in card
    assert "cannot read" not in card
    assert PruningPlan.load(tmp_path / "plan.json") == result.plan
    entered: Any = stock_model("hf", str(tmp_path)).make()  # as the command line does
    assert [p.shape for p in entered.parameters()] == [p.shape for p in model.parameters()]
    with pytest.raises(OSError, match="no file named model"):
        type(model).from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_what_could_not_be_read_again_is_refused_before_anything_is_written(
    results: dict[str, tuple[taskprune.PruneResult, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    from taskprune.integrations.transformers import from_pretrained, save_pretrained

    result = results["bert"][0]
    model: Any = copy.deepcopy(result.model)
    with pytest.raises(InputError, match="a model of transformers"):
        save_pretrained(tmp_path / "none", nn.Linear(2, 2), result.plan)
    with pytest.raises(CheckpointError, match="Pass the pruned model"):
        save_pretrained(tmp_path / "none", case("bert")[0], result.plan)
    model.config.intermediate_size = 96
    with pytest.raises(CheckpointError, match="changed by hand"):
        save_pretrained(tmp_path / "none", model, result.plan)
    assert not (tmp_path / "none").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        from_pretrained(tmp_path)

    save_pretrained(tmp_path, result.model, result.plan)
    config = tmp_path / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("BertForSequenceClassification", "TheirOwn"), encoding="utf-8")
    with pytest.raises(InputError, match="Pass the original's class"):
        from_pretrained(tmp_path)
    kind: Any = type(result.model)
    found = from_pretrained(tmp_path, kind, attn_implementation="eager")
    assert found.config._attn_implementation == "eager"
    config.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot read it"):
        from_pretrained(tmp_path)


def test_widths_that_a_configuration_says_need_no_plan(tmp_path: Path) -> None:
    from taskprune.integrations.transformers import prune_to_config

    made, inputs = case("llama")
    model: Any = made
    config = copy.deepcopy(model.config)
    config.intermediate_size = 31
    result = prune_to_config(model, config, data=[inputs])
    smaller: Any = result.model
    assert {layer.mlp.up_proj.out_features for layer in smaller.model.layers} == {31}
    assert not any("save_pretrained" in note for note in result.report.notes)
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, smaller(**inputs).logits)

    config.rms_norm_eps = 0.5
    with pytest.raises(VerificationError, match="means more than widths"):
        prune_to_config(model, config, data=[inputs])
    config.num_hidden_layers = 1
    with pytest.raises(InputError, match="otherwise"):
        prune_to_config(model, config, data=[inputs])
    with pytest.raises(InputError, match="changes no size"):
        prune_to_config(model, copy.deepcopy(model.config), data=[inputs])
    with pytest.raises(InputError, match="a changed copy"):
        prune_to_config(nn.Linear(2, 2), config, data=[inputs])
