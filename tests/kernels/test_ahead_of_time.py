"""The kernels compile for A100 and H100 without either, and fit on them."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from tutelage.kernels import ahead_of_time
from tutelage.kernels.ahead_of_time import MODULES, SHARED_LIMIT, Resources, Variant, main

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = [variant for name in MODULES for variant in importlib.import_module(name).variants()]
SPILLS = 128
"""Most bytes that a thread of a backward kernel may spill: more would show in its time."""


@pytest.fixture(scope="module")
def rows():
    """The table of the command, compiled in a process that does not interpret: (name, tile, arch) → columns."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tutelage.kernels.ahead_of_time", "--arch", "80,90"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    table = {}
    for line in done.stdout.splitlines()[1:]:
        name, tile, arch, _, _, registers, spills, shared, _, limit, intensity = line.split()
        key = name, tile, int(arch)
        assert key not in table
        table[key] = int(registers), int(spills), float(shared), float(limit), float(intensity)
    return table


def test_every_variant_is_there_for_both(rows):
    assert len(VARIANTS) > 10
    assert set(rows) == {(variant.name, variant.tile, arch) for variant in VARIANTS for arch in (80, 90)}


def test_forward_kernels_spill_nothing_and_backward_ones_little(rows):
    allowed = {(variant.name, variant.tile): SPILLS if variant.may_spill else 0 for variant in VARIANTS}
    for (name, tile, arch), (_, spills, *_) in rows.items():
        assert spills <= allowed[name, tile], (name, tile, arch)


def test_shared_memory_suffices(rows):
    for (name, tile, arch), (registers, _, shared, limit, intensity) in rows.items():
        assert shared <= limit == SHARED_LIMIT[arch] // 1024, (name, tile, arch)
        assert 0 < registers <= 255
        assert intensity > 0


def test_attention_does_enough_with_what_it_reads(rows):
    """Keys and values come from cache, at some 5 TB/s on an H100: 100 flops a byte are then half of what it can do."""
    assert all(row[-1] > 100 for (name, *_), row in rows.items() if name.startswith("attention_forward"))


def fake(**changes):
    given = {"name": "kernel", "kernel": None, "signature": {}, "constexprs": {}, "warps": 4, "stages": 2}
    return Variant(**given | {"flops": 8.0, "bytes": 2.0, "tile": "64×64"} | changes)


@pytest.mark.parametrize(
    ("variant", "used", "status"),
    [
        (fake(), Resources(128, 0, 1024, 4.0), 0),
        (fake(), Resources(255, 8, 1024, 4.0), 1),
        (fake(may_spill=True), Resources(255, 8, 1024, 4.0), 0),
        (fake(may_spill=True), Resources(128, 0, 163 * 1024 + 1, 4.0), 1),
    ],
)
def test_the_exit_status(monkeypatch, capsys, variant, used, status):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ahead_of_time, "compile_variant", lambda *_: used)
    monkeypatch.setattr(
        ahead_of_time.importlib, "import_module", lambda _: type("M", (), {"variants": lambda: [variant]})
    )
    monkeypatch.setattr(ahead_of_time, "MODULES", ["one"])
    assert main(["--arch", "80"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("FAILS") == bool(status)


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        ahead_of_time.compile_variant(fake(), 80)
