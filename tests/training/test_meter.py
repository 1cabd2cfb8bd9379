"""What a run is tuned by."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from tutelage.student.config import StudentOptions, resolve
from tutelage.teacher.signal import TeacherSpec
from tutelage.training import meter as module
from tutelage.training.config import RunConfig
from tutelage.training.meter import PARTS, Meter, Split, peak_flops, student_flops, teacher_flops
from tutelage.training.parts import build

CPU = torch.device("cpu")


def test_a_student_costs_six_per_weight_and_its_attention() -> None:
    shape = resolve(StudentOptions(), 49_152, "125m")
    attention = 12 * 3 * 2 * 2 * 12 * 64 * (1024 / 2)  # layers; thrice; two matmuls; a product and a sum; T/2 keys
    assert student_flops(shape, 1024) == pytest.approx(6 * shape.n_parameters + attention, rel=1e-3)
    untied = resolve(StudentOptions(tie_embeddings=False), 49_152, "125m")
    assert student_flops(untied, 1024) == student_flops(shape, 1024)  # a table that is looked up multiplies nothing


def test_a_teacher_costs_two_per_weight() -> None:
    spec = TeacherSpec("t", "s", None, None, 3_030_371_328, 49_152, 3072, 30, "")
    layers, head = teacher_flops(spec, 512)
    assert head == 2 * 49_152 * 3072
    assert layers + head == pytest.approx(2 * 3_030_371_328 + 30 * 2 * 2 * 3072 * 256)


def test_time_goes_to_the_part_that_took_it() -> None:
    split = Split(CPU)
    for _ in range(2):
        split.start()
        time.sleep(0.02)
        split.mark("data")
        time.sleep(0.06)
        split.mark("student")
        time.sleep(0.03)  # between steps: nobody's
    found = split.read()
    assert set(found) == {"data", "student"}
    assert 0.04 <= found["data"] < found["student"]
    assert split.read() == {}


def test_a_meter_reads_rates_shares_and_utilisation(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "peak_flops", lambda device, name: 1e9)
    config = make_config(steps=9, max_rows=8)  # so that the teacher has a memory
    parts = build(config, None)
    split = Split(CPU)
    meter = Meter(split, parts, config)
    assert meter.read() == {}
    shape, spec = parts.student.config, parts.teacher.spec
    layers, head = teacher_flops(spec, 32)
    for step, asked in ((0, 1), (1, 1), (2, 0)):  # two batches are all rows: the third is remembered
        split.start()
        parts.teacher.signal(parts.loader.batch(step))
        split.mark("teacher")
        meter.step(128, 2.0)
        row = meter.read()
        flops = 128 * (student_flops(shape, 32) + head + asked * layers)
        assert row["perf/mfu"] == pytest.approx(flops / 2.0 / 1e9)  # every part has the same peak here
        assert row["perf/tokens_per_s"] == 64
        assert row["perf/seconds_per_step"] == 2
        assert row["perf/share_teacher"] == 1
        assert sum(row[f"perf/share_{part}"] for part in PARTS) == pytest.approx(1)
    assert meter.read() == {}


def test_a_gpus_peak_is_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-40GB": 312e12}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), "bf16") == peak
    assert 1e8 < peak_flops(CPU, "fp32") < 1e15


def test_peak_memory_is_this_process_s() -> None:
    code = (
        "import torch; from tutelage.training.meter import peak_memory as peak; device = torch.device('cpu')\n"
        "before = peak(device); block = torch.ones(64, 2**20); print(peak(device) - before)"  # 256 MiB, touched
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 200 * 2**20 < int(told) < 300 * 2**20
