from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import make_net

from taskprune.errors import InputError


@pytest.mark.parametrize("taps", [["stage"], None])
def test_a_bfloat16_teacher_is_probed_as_it_is_run(taps: Any) -> None:
    teacher = make_net(0, norm=True).bfloat16()
    chosen = settings(2, mixed_precision="bf16")
    result = run(make_net(1, norm=True), teacher, taps=taps, settings=chosen)
    assert len(result.history) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("taps", [["stage"], None])
def test_a_teacher_whose_type_does_not_fit_is_refused_with_both(
    dtype: torch.dtype, taps: Any
) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"teacher cannot run.*are {name}.*batch is float32"):
        run(make_net(1), make_net(0).to(dtype), taps=taps)
    with pytest.raises(InputError, match=rf"student cannot run.*are {name}.*batch is float32"):
        run(make_net(1).to(dtype), make_net(0), taps=taps)
