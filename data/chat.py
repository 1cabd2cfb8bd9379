"""Messages as a chat model reads them: the tokenizer's own template, rendered in jinja's sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.errors import UserError

Message = Mapping[str, str]
"""`role` and `content`."""


def render(template: str, messages: Sequence[Message], specials: Mapping[str, str], *, answer: bool = True) -> str:
    """The text of the messages, ready for an answer if `answer`. Raises UserError where the template fails."""
    from transformers.utils import chat_template_utils

    render_template: Any = chat_template_utils.render_jinja_template
    try:
        rendered, _ = render_template(
            [list(messages)], chat_template=template, add_generation_prompt=answer, **specials
        )
    except Exception as error:  # a template may raise what it likes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the chat template fails ({reason}): pass --prompt_style completion") from error
    return str(rendered[0])
