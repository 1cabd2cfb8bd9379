"""What tests of evaluation share."""

import pytest

from tutelage.data.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """Every byte is a token, and no two are one."""
    return train(["ab"], 257)
