"""The trace of a few steps."""

import gzip
import json
from collections.abc import Callable

from tutelage import distill
from tutelage.training.config import RunConfig


def test_a_trace_that_people_can_open(make_config: Callable[..., RunConfig]) -> None:
    run = distill(make_config(steps=6, profile=True))
    [file] = (run.path / "profile").iterdir()
    assert file.name == "rank-0.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}
    assert any("mm" in str(event.get("name")) for event in events)
    assert "profile: false" in (run.path / "config.yaml").read_text()  # it is no part of what the run is
