from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distill_toys import same_state, state
from distributed_child import gradients, train
from launched_processes import child_environment, needs_processes, run_in_processes
from safetensors.torch import load_file
from torch import Tensor

CHILD = Path(__file__).with_name("distributed_child.py")
NAN_CHILD = Path(__file__).with_name("nan_child.py")


@pytest.mark.slow
@needs_processes
def test_two_processes_train_one_student(tmp_path: Path) -> None:
    run_in_processes(CHILD, tmp_path)

    def saved(name: str, rank: int) -> dict[str, Tensor]:
        return load_file(tmp_path / f"{name}_{rank}.safetensors")

    for name in ("split", "whole", "resumed", "best"):
        assert same_state(saved(name, 0), saved(name, 1))
    assert same_state(saved("resumed", 0), saved("whole", 0))
    assert saved("best", 0)["stage.1.num_batches_tracked"] == 4  # the main process decides
    whole = gradients(batch_size=4)
    for rank in (0, 1):
        split = saved("gradients", rank)
        assert split.keys() == whole.keys()
        for name, gradient in split.items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-7, rtol=1e-5)
    alone = state(train(batch_size=4, shuffle=False))
    for name, tensor in saved("split", 0).items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@needs_processes
def test_one_script_scores_prunes_and_distils_on_two_processes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2"),
            *(str(root / "examples" / "distributed.py"), "--out", str(tmp_path)),
        ],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    plans = [(tmp_path / f"plan_{rank}.json").read_text() for rank in (0, 1)]
    assert plans[0] == plans[1]
    first, second = (load_file(tmp_path / f"student_{rank}.safetensors") for rank in (0, 1))
    assert same_state(first, second)


@pytest.mark.slow
@needs_processes
def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_the_same_weights(
    tmp_path: Path,
) -> None:
    run_in_processes(NAN_CHILD, tmp_path)
    said = [(tmp_path / f"said_{rank}.txt").read_text() for rank in (0, 1)]
    assert said[1].startswith("Step 2: the task loss `near` is nan")
    assert said[0] == f"Process 1 stopped, and with it all others. {said[1]}"
    first, second = (load_file(tmp_path / f"student_{rank}.safetensors") for rank in (0, 1))
    assert same_state(first, second)
