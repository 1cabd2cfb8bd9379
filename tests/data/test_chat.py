"""Chat templates as people publish them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from tutelage.data.tokenizer import EOS, Tokenizer
from tutelage.errors import UserError

INST = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}" + (
    "{{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def folder(tokenizer: Tokenizer, path: Path, template: object, **config: object) -> Path:
    backend = Backend.from_str(tokenizer._prompts.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(path / "tokenizer.json"))
    known = {"eos_token": EOS, "chat_template": template, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(known))
    return path


def test_a_question_is_put_in_the_models_own_words(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = Tokenizer.from_directory(folder(tokenizer, tmp_path, INST))
    assert ours.chat_prompt("Sort it.") == "[INST] Sort it. [/INST]"
    other = Tokenizer.from_directory(folder(tokenizer, tmp_path, CHATML))
    assert other.chat_prompt("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert other.encode_prompt(other.chat_prompt("Hi")).count(600) == 2


def test_of_several_templates_the_default_is_taken(tokenizer: Tokenizer, tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": INST}]
    assert Tokenizer.from_directory(folder(tokenizer, tmp_path, several)).chat_prompt("x") == "[INST] x [/INST]"
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer.from_directory(folder(tokenizer, tmp_path, several[:1])).chat_prompt("x")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")  # which goes before the configuration
    assert Tokenizer.from_directory(tmp_path).chat_prompt("x") == "x!"


@pytest.mark.parametrize("template", ["{{ raise_exception('no\nroles') }}", "{% for %}", "{{ messages[7].content }}"])
def test_a_template_that_fails_is_one_line(template: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    broken = Tokenizer.from_directory(folder(tokenizer, tmp_path, template))
    with pytest.raises(UserError, match=r"^the chat template fails \(.*\): pass --prompt_style completion$") as error:
        broken.chat_prompt("x")
    assert "\n" not in str(error.value)
    assert not broken.ends_turns


@pytest.mark.parametrize(
    ("template", "eos", "chats"),
    [
        (CHATML, "<|im_end|>", True),
        (CHATML, EOS, False),  # a base model that carries the template of the chat model made of it
        (INST, EOS, True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", EOS, False),
        (None, EOS, False),
    ],
)
def test_a_chat_model_ends_where_its_template_ends_an_answer(
    template: str | None, eos: str, chats: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert Tokenizer.from_directory(folder(tokenizer, tmp_path, template, eos_token=eos)).ends_turns == chats


def test_a_template_cannot_reach_beyond_its_sandbox(tokenizer: Tokenizer, tmp_path: Path) -> None:
    hostile = "{{ messages.__class__.__base__.__subclasses__() }}"
    with pytest.raises(UserError, match="the chat template fails"):
        Tokenizer.from_directory(folder(tokenizer, tmp_path, hostile)).chat_prompt("x")
