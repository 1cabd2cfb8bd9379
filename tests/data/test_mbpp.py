import json
from pathlib import Path

import pytest

from tutelage.data.mbpp import mbpp_file
from tutelage.data.readers import Unreadable

LOCAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mbpp.jsonl"


def test_only_training_problems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [{"task_id": n, "text": f"Write {n}.", "code": f"x = {n}", "test_list": []} for n in range(1, 975)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "no id"}])))
    found = list(mbpp_file(path))
    assert found[0] == (f"{path}:601", '"""Write 601."""\nx = 601\n')
    assert len(found) == 374 + 1
    assert isinstance(found[-1][1], Unreadable)


@pytest.mark.skipif(not LOCAL.exists(), reason="MBPP is not beside the repository")
def test_the_real_file_gives_its_374_training_problems() -> None:
    texts = [value for _, value in mbpp_file(LOCAL)]
    test_codes = [json.loads(line)["code"] for line in LOCAL.read_text().splitlines()[10:510]]
    assert len(texts) == 374
    assert all(isinstance(text, str) and text.startswith('"""') for text in texts)
    joined = "\n".join(map(str, texts))
    assert not any(code in joined for code in test_codes if len(code) > 120)
