"""What two processes do in test_two_processes.py: `torchrun … group_worker.py OUT TEACHER…`.

Each works in OUT/RANK, where its teachers lie; what it found out goes to OUT/RANK.json.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tutelage.data.packing import pack
from tutelage.errors import UserError
from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate
from tutelage.teacher.registry import load_teacher
from tutelage.training.distiller import Distiller
from tutelage.training.processes import TRAINING, Processes
from tutelage.training.sharding import shard, teacher_device, whole

RANK = int(os.environ["RANK"])
SHAPE = StudentConfig(vocab_size=600, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32)


def collectives(processes: Processes) -> dict[str, Any]:
    """What each method gives here."""
    value = torch.arange(3.0) + processes.rank
    found: dict[str, Any] = {
        "place": (processes.rank, processes.size, str(processes.device)),
        "all_reduce": (processes.all_reduce(value).tolist(), value.tolist()),
        "any": [processes.any(False), processes.any(processes.first), processes.any(not processes.first)],
        "broadcast": (processes.broadcast(f"rank {RANK}"), processes.broadcast(value).tolist(), value.tolist()),
        "all_gather": processes.all_gather({"rank": RANK}),
    }

    def fail() -> int:
        if processes.first:
            return 1
        raise UserError("the second process alone has no room")

    try:
        processes.raise_together(fail)
    except UserError as error:
        found["raise_together"] = str(error)
    with processes.local_first():
        found["entered"] = time.time()
        time.sleep(0.2)
        found["left"] = time.time()
    return found


def gradients(processes: Processes) -> list[list[float]]:
    """Of a weight by which rank + 1 is multiplied: before they are exchanged, after, and in two halves."""
    found = []
    for exchanges in ([False], [True], [False, True]):
        wrapped = processes.wrap(torch.nn.Linear(1, 1, bias=False))
        for now in exchanges:
            with processes.sync(wrapped, now):
                wrapped(torch.tensor([[RANK + 1.0]])).sum().backward()
        found.append([parameter.grad.item() for parameter in wrapped.parameters() if parameter.grad is not None])
    return found


def sharded(processes: Processes, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a teacher says that one process has loaded and two hold."""
    teacher: Any = load_teacher(name, teacher_device(processes, None), dtype)
    distiller = Distiller(Decoder(SHAPE), Objective(LossConfig(), SHAPE.vocab_size))
    shard(distiller, teacher, processes)
    random = np.random.default_rng(0)
    documents = [random.integers(1, 600, size).tolist() for size in (5, 3, 20, 1, 9, 4)]
    batch = pack(documents, 0, 16).batch(np.arange(3))
    signal = teacher.signal(batch)
    model = getattr(teacher, "model", None) or teacher.decoder
    parameters = [*model.parameters()]
    return {
        "hidden": signal.dense.hidden.float().tolist(),
        "hidden again": signal.dense.hidden.equal(teacher.signal(batch).dense.hidden),
        "logits": (signal.dense.hidden @ signal.dense.head.T).float().sum().item(),
        "head is whole": not isinstance(signal.dense.head, DTensor),
        "on meta": sum(parameter.is_meta for parameter in parameters),
        "here": sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters),
        "weights": teacher.spec.weights,
        "student": sum(whole(p.detach()).double().sum().item() for p in distiller.student.parameters()),
        "generated": generate(
            teacher.generator(), [[5, 6, 7], [9]], max_new_tokens=4, end_ids={599},
            temperature=1.0, seed=RANK, broadcast=processes.broadcast,
        ),
    }  # fmt: skip


def main(out: Path, teachers: list[str]) -> None:
    os.chdir(out / str(RANK))
    torch.set_num_threads(1)
    torch.manual_seed(RANK)
    found: dict[str, Any] = {}
    with Processes("cpu") as processes:
        found["collectives"] = collectives(processes)
        processes.started()
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
        found["timeout"] = backend.options._timeout == TRAINING
        found["gradients"] = gradients(processes)
    found["closed"] = not dist.is_initialized()
    with Processes("cpu") as processes:  # another run of the same processes
        for name in teachers:
            found[name] = sharded(processes, name, torch.float32)
    (out / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
