"""What programs and people read."""

import json

from tests.evaluation.test_passk import greedy
from tutelage.evaluation.report import Measured, comparisons, in_words, show, write_results


def models():
    one = Measured({"humaneval/pass@1": 0.055, "size/parameters": 1234567}, {"humaneval/pass@1": (0.02, 0.1)})
    return {"student": one, "teacher:x": Measured({"perplexity/loss": 2.5})}


def test_results_are_plain_numbers_by_model(tmp_path):
    write_results(tmp_path / "eval" / "results.json", models(), {"samples": 1})
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert found["models"]["student"] == {
        "metrics": {"humaneval/pass@1": 0.055, "size/parameters": 1234567},
        "intervals": {"humaneval/pass@1": [0.02, 0.1]},
        "details": {},
    }
    assert found["comparisons"] == []
    assert found["settings"] == {"samples": 1}


def test_the_table_has_a_column_per_model_and_a_row_per_metric_that_someone_has(capsys):
    show(models())
    printed = capsys.readouterr().out
    for text in ("student", "teacher:x", "5.5%", "2.0%–10.0%", "1,234,567", "2.500"):
        assert text in printed
    assert "KL from teacher" not in printed


def test_models_are_compared_on_what_both_were_asked():
    three = {name: Measured(scores={"humaneval": greedy(solved)}) for name, solved in (("a", range(9)), ("b", []))}
    [told] = comparisons({**three, "c": Measured()}, samples=1)
    assert told["benchmark"] == "humaneval"
    assert told["models"] == ["a", "b"]
    assert in_words(told).startswith("humaneval pass@1: a − b = +5.5 points (95 %: +")
    assert "p = 0.00" in in_words(told)
    assert json.loads(json.dumps(told)) == {**told, "interval": list(told["interval"])}
