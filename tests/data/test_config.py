import subprocess
import sys

import pytest

from tutelage.data.config import PackingConfig
from tutelage.errors import UserError


@pytest.mark.parametrize("heldout", [0.0, 1.0, -0.1, float("nan")])
def test_heldout_must_leave_both_sides(heldout: float) -> None:
    with pytest.raises(UserError, match=r"--packing\.heldout"):
        PackingConfig(heldout=heldout)


def test_max_bad_rows_is_a_share() -> None:
    with pytest.raises(UserError, match=r"max_bad_rows 3"):
        PackingConfig(max_bad_rows=3)


def test_help_does_not_pay_for_heavy_imports() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'numpy'}"
    code = f"import sys, tutelage.data.config, tutelage.data.train_tokenizer; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
