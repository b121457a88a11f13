from __future__ import annotations

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from distill_toys import make_batches, make_net, make_tasks, same_state, state

from taskprune.distillation import DistillSettings, distill
from taskprune.errors import InputError


@pytest.mark.parametrize(
    "kind",
    [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM],
    ids=lambda kind: str(kind.value),
)
def test_a_student_split_between_processes_is_refused_by_name(
    kind: DistributedType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: kind))
    student = make_net(1)
    before = state(student)
    with pytest.raises(InputError, match=f"Found Accelerate started with {kind.value}"):
        distill(
            student,
            make_net(0),
            tasks=make_tasks(),
            data=make_batches(),
            settings=DistillSettings(steps=1, cpu=True),
        )
    assert same_state(state(student), before)
    assert AcceleratorState._shared_state == {}
