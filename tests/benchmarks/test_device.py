"""The one command for a device: every part for real at sizes that say nothing, and one that fails beside them."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import device, device_page, device_setup
from benchmarks.device_page import Outcome
from benchmarks.device_parts import PARTS, Part, Setting


def part(*code: str, least: float = 1.0, most: float = 60.0) -> Part:
    """A part that runs lines of Python, and has one table."""
    return Part(
        "A part", least, most, lambda s, t: [[sys.executable, "-c", one] for one in code], lambda s: {"t": [{"a": 1}]}
    )


@pytest.fixture
def parts() -> Iterator[dict[str, Part]]:
    """The table of parts, to be changed at will."""
    before = dict(PARTS)
    yield PARTS
    PARTS.clear()
    PARTS.update(before)


@pytest.fixture
def few(parts: dict[str, Part]) -> dict[str, Part]:
    """Three quick parts instead of the real ones."""
    parts.clear()
    parts.update({name: part("print('fine')") for name in ("one", "two", "three")})
    return parts


@pytest.mark.slow
def test_every_part_runs_and_one_that_fails_leaves_the_others_whole(
    parts: dict[str, Part], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = list(parts.items())
    parts.clear()
    parts.update([*real[:4], ("broken", part("import sys; print('so far'); sys.exit('no such luck')")), *real[4:]])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = device.main(["--device", "cpu", "--tiny", "--output", str(tmp_path), "--minutes", "60"])
    told = capsys.readouterr().out
    assert code == 1
    assert told.splitlines()[-1] == str(tmp_path / "README.md")
    page = (tmp_path / "README.md").read_text()
    lines = list(csv.DictReader((tmp_path / "device.csv").open()))
    results = {line["part"]: line["value"] for line in lines if line["column"] == "result"}
    assert results == {**dict.fromkeys(parts, "passed"), "broken": "failed"}, (tmp_path / "log.txt").read_text()[-3000:]
    assert list(results) == list(parts)
    assert "so far\nno such luck" in page
    assert "exit code 1" in told

    def value(table: str, row: str, column: str) -> float:
        return float(next(x["value"] for x in lines if (x["table"], x["row"], x["column"]) == (table, row, column)))

    assert value("ceilings", "matmul, float32", "rate") > 0
    assert value("tests", "kernels.test_checks", "passed") > 10
    assert value("tests", "kernels.test_checks", "failed") == 0
    shares = [f"{name} %" for name in ("data", "teacher", "student", "loss", "optimizer")]
    assert sum(value("steps", "fp32", share) for share in shares) == pytest.approx(100)
    assert value("decoding", "nano", "tokens/s, batch 8") > value("decoding", "nano", "tokens/s, batch 1") > 0
    assert value("the last row of metrics.jsonl", "step", "value") == 4
    assert value("results.json", "fidelity/kl", "run") > 0
    assert value("results.json", "latency/tokens_per_s", "teacher:teacher") > 0
    assert "SDPA with a mask" in page
    assert "fused loss vs naive eager: time" in page
    assert "| head" not in page
    assert str(tmp_path.parent) not in page
    for name in ("device.png", "kernels-cpu.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
        assert f"]({name})" in page
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert "===== evaluate =====" in (tmp_path / "log.txt").read_text()
    assert len(list(tmp_path.iterdir())) <= 8


def test_all_well_is_exit_code_0_and_the_last_line_says_where(
    few: dict[str, Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device.main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == str(tmp_path / "README.md")
    assert [line.split()[:2] for line in told[-4:-1]] == [[name, "passed"] for name in ("one", "two", "three")]
    assert device.main(["--device", "cpu", "--output", str(tmp_path), "--parts", "two"]) == 0
    assert "`one`" not in (tmp_path / "README.md").read_text()


def test_the_page_is_there_while_parts_are_still_to_come(
    few: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(setting: Setting, seconds: float) -> list[list[str]]:
        page = (setting.out / "README.md").read_text()
        assert "| one | passed |" in page
        assert "| three | not yet |" in page
        raise KeyboardInterrupt

    monkeypatch.setitem(few, "two", replace(few["two"], commands=interrupt))
    assert device.main(["--device", "cpu", "--output", str(tmp_path)]) == 130
    page = (tmp_path / "README.md").read_text()
    assert "| two | failed | 0 |" in page
    assert "interrupted" in page


def test_a_part_that_takes_too_long_is_asked_to_end_and_keeps_what_it_wrote(
    few: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "import time\ntry:\n  print('begun', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('asked')"
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    )
    monkeypatch.setattr(device, "GRACE", 2.0)
    monkeypatch.setitem(few, "one", part(asked, deaf, most=8.0))
    started = time.monotonic()
    assert device.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    assert time.monotonic() - started < 25
    page = (tmp_path / "README.md").read_text()
    assert "begun\nasked" in page
    assert "deaf" in page
    assert page.count("out of time after") >= 2
    assert "| three | passed |" in page


def test_what_cannot_be_read_is_that_part_s_failure(
    few: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(few, "one", replace(few["one"], read=lambda s: {"t": [json.loads("{half")]}))
    assert device.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    page = (tmp_path / "README.md").read_text()
    assert "what it left cannot be read: JSONDecodeError" in page
    assert "| two | passed |" in page


def test_time_is_shared_and_what_comes_later_keeps_its_least() -> None:
    first, second, third = (part("", least=least, most=most) for least, most in ((10, 40), (20, 50), (100, 200)))
    assert device.limits(first, [second, third], 480, 1) == 40
    assert device.limits(first, [second, third], 150, 1) == 30
    assert device.limits(first, [second, third], 75, 0.5) == 15
    assert sum(p.least for p in PARTS.values()) < 480 * 0.85
    left = 480.0
    for place, one in enumerate(PARTS.values()):  # even where each takes all it may
        limit = device.limits(one, list(PARTS.values())[place + 1 :], left, 1)
        assert limit >= one.least
        left -= limit
    assert left >= 0


def test_no_time_left_is_said_by_name(few: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(few, "three", part("", least=5000, most=6000))
    monkeypatch.setitem(few, "one", part("", least=1000, most=2000))
    assert device.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    page = (tmp_path / "README.md").read_text()
    assert "| one | skipped |" in page
    assert "no time left" in page


@pytest.mark.parametrize("flags", [["--parts", "test"], ["--minutes", "0"], ["--device", "tpu"]])
def test_bad_input_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        device.main(flags)
    assert flags[1].split("0")[0] in capsys.readouterr().err


def test_parts_that_build_on_others_say_what_they_lack(tmp_path: Path) -> None:
    setting = Setting("cpu", True, tmp_path, tmp_path)
    for name, needed in (("train", "teacher"), ("distil", "teacher"), ("evaluate", "distil")):
        found = device.run_part(name, setting, 5.0, {})
        assert (found.status, found.reason.split("`")[1]) == ("skipped", needed)


def test_on_a_gpu_each_group_of_kernels_has_its_process_and_its_time(tmp_path: Path) -> None:
    setting = Setting("cuda", False, tmp_path, tmp_path)
    commands = PARTS["kernels"].commands(setting, 100.0)
    seconds = [float(command[command.index("--seconds") + 1]) for command in commands]
    assert len(commands) == 3
    assert sum(seconds) + 3 * 10 < 100
    (tmp_path / "teacher-0.out").write_text('{"rows": [{"teacher": "smollm2-135m"}]}\n')
    steps = PARTS["train"].commands(setting, 60.0)
    assert ["--random_teacher" in command for command in steps] == [True, False]
    assert all(command[command.index("--compile") + 1] == "both" for command in steps)
    [distil] = PARTS["distil"].commands(setting, 150.0)
    assert 1.5 < float(distil[distil.index("--minutes") + 1]) <= 2


def test_wheels_and_weights_are_unpacked_beside_and_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, site = tmp_path / ".whl", tmp_path / "site"
    source.mkdir()
    with zipfile.ZipFile(source / "brought-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought/__init__.py", "VALUE = 7\n")
    (source / "torn-1.0-py3-none-any.whl").write_bytes(b"no zip")
    weights = os.urandom(1000)
    (source / "later").mkdir()
    (source / f"{device_setup.GGUF}.part-aa").write_bytes(weights[:600])
    (source / "later" / f"{device_setup.GGUF}.part-ab").write_bytes(weights[600:])
    said = device_setup.unpack(source, site)
    assert said[0] == "brought-1.0-py3-none-any.whl"
    assert said[1].startswith("torn-1.0-py3-none-any.whl: not usable")
    assert said[2].endswith("2 piece(s), not the right SHA-256: left out")
    assert not (site / device_setup.PACKAGE).exists()
    monkeypatch.setattr(device_setup, "GGUF_SHA256", hashlib.sha256(weights).hexdigest())
    assert device_setup.unpack(source, site)[2] == f"{device_setup.GGUF}, 2 piece(s)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(device.ROOT)])}
    code = "import brought; from tutelage.teacher.embedded import gguf_file; print(brought.VALUE, gguf_file())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["7", str(site / device_setup.PACKAGE / device_setup.GGUF)], done.stderr


def test_a_table_is_markdown() -> None:
    rows = [{"a": "x|y", "b": 1234.5, "c": None}, {"a": "two\nlines", "b": float("nan"), "d": 7}]
    assert device_page.markdown(rows).splitlines() == [
        "| a | b | c | d |",
        "| --- | ---: | --- | ---: |",
        "| x\\|y | 1,234 |  |  |",
        "| two lines |  |  | 7 |",
    ]
    assert Outcome().status == "not yet"
