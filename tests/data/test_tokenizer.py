import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.tokenizer import EOS, Tokenizer, check_fingerprint, train
from tutelage.errors import UserError


@pytest.fixture
def saved(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "t")
    return tmp_path / "t"


def edit(path: Path, **changes: object) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@given(text=st.text())
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_special_tokens_in_a_document_are_text(tokenizer: Tokenizer) -> None:
    hostile = f"end = '{EOS}'"
    assert tokenizer.eos_id == 0
    assert 0 not in tokenizer.encode(hostile)
    assert 0 not in tokenizer.encode_batch([hostile])[0]
    assert tokenizer.decode(tokenizer.encode(hostile)) == hostile
    prompt = tokenizer.encode_prompt(hostile)
    assert prompt.count(0) == 1
    assert tokenizer.decode(prompt) == "end = ''"
    assert tokenizer.decode(prompt, skip_special=False) == hostile


def test_save_and_load_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chatty = Tokenizer(tokenizer._prompts, {"eos_token": EOS, "pad_token": EOS}, "{{ messages }}")
    chatty.save(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    assert loaded.specials == chatty.specials
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("def f(): pass") == tokenizer.encode("def f(): pass")


def test_transformers_reads_what_we_save_and_we_read_it_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chatty = Tokenizer(tokenizer._prompts, tokenizer.specials, "{{ messages[0].content }}")
    chatty.save(tmp_path / "ours")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "ours"))
    text = "def f(x):\n    return x  # ü"
    assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    theirs.save_pretrained(tmp_path / "theirs")
    back = Tokenizer.from_directory(tmp_path / "theirs")
    assert back.fingerprint == tokenizer.fingerprint
    assert back.chat_template == chatty.chat_template


def test_truncation_and_padding_in_the_file_are_ignored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert Tokenizer.from_directory(tmp_path).encode("a b c d e f") == tokenizer.encode("a b c d e f")


def test_fingerprint_changes_with_one_token_or_the_end_token(saved: Path, tokenizer: Tokenizer) -> None:
    file = saved / "tokenizer.json"
    original = json.loads(file.read_text())
    swapped = json.loads(file.read_text())
    vocabulary = swapped["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.__getitem__)[10:12]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(swapped))
    assert Tokenizer.from_directory(saved).fingerprint != tokenizer.fingerprint
    file.write_text(json.dumps(original))
    assert Tokenizer.from_directory(saved).fingerprint == tokenizer.fingerprint
    swapped["model"]["vocab"] = original["model"]["vocab"]
    swapped["added_tokens"][0]["special"] = False
    file.write_text(json.dumps(swapped))
    assert Tokenizer.from_directory(saved).fingerprint != tokenizer.fingerprint
    file.write_text(json.dumps(original))
    edit(saved / "tokenizer_config.json", eos_token="!")
    assert Tokenizer.from_directory(saved).fingerprint != tokenizer.fingerprint


def test_check_fingerprint() -> None:
    check_fingerprint("a" * 64, "a" * 64, "checkpoint x")
    with pytest.raises(UserError, match=r"checkpoint x uses another tokenizer \(fingerprint b{12}, expected a{12}\)"):
        check_fingerprint("a" * 64, "b" * 64, "checkpoint x")


def test_end_token_as_an_object_and_vocabulary_with_added_tokens(saved: Path, tokenizer: Tokenizer) -> None:
    edit(saved / "tokenizer_config.json", eos_token={"content": EOS, "special": True})
    loaded = Tokenizer.from_directory(saved)
    assert loaded.eos_id == tokenizer.eos_id
    loaded._prompts.add_special_tokens(["<|user|>"])
    wider = Tokenizer(loaded._prompts, loaded.specials)
    assert wider.vocab_size == tokenizer.vocab_size + 1
    assert wider.token_bytes(wider.vocab_size - 1) == b"<|user|>"
    with pytest.raises(KeyError):
        wider.token_bytes(wider.vocab_size)


def test_directories_that_hold_no_usable_tokenizer(saved: Path, tmp_path: Path) -> None:
    def load(name: str) -> Tokenizer:
        return Tokenizer.from_directory(shutil.copytree(saved, tmp_path / name, dirs_exist_ok=True))

    with pytest.raises(UserError, match=r"no tokenizer in .*expected tokenizer\.json"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    edit(saved / "tokenizer_config.json", eos_token="<|nope|>")
    with pytest.raises(UserError, match=r"'<\|nope\|>' is not in the vocabulary"):
        load("wrong")
    edit(saved / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match=r"names no end-of-text token.*tokenizer_config\.json"):
        load("unnamed")
    (saved / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json' is not JSON"):
        load("broken")
    (saved / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"names no end-of-text token"):
        Tokenizer.from_directory(saved)
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_directory(saved)


def test_older_formats_go_through_transformers(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    model = json.loads((saved / "tokenizer.json").read_text())["model"]
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]))
    (old / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": EOS}))
    assert Tokenizer.from_directory(old).encode("def f(x): return x") == tokenizer.encode("def f(x): return x")


def test_training_sizes(library_texts: list[str], tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 600
    assert train(library_texts, 600).fingerprint == tokenizer.fingerprint
    assert train(["x"], 257).vocab_size == 257
    with pytest.raises(UserError, match=r"--vocab_size 256 .*use 257 or more"):
        train(library_texts, 256)
    with pytest.raises(UserError, match=r"only 259 different tokens.*--vocab_size 259"):
        train(["ab ab ab"], 300)
