"""What a model answers: prompts of like length in one batch, written down batch by batch."""

from collections.abc import Callable, Mapping, Sequence

from tutelage.errors import UserError
from tutelage.evaluation.candidate import Candidate
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.ledger import Key, Ledger
from tutelage.evaluation.problems import truncate
from tutelage.evaluation.progress import bar
from tutelage.student.generate import generate
from tutelage.training.devices import find_device

NAMED = 10
"""Problems that an error names."""


def complete(
    candidate: Candidate, prompts: Mapping[Key, str], stops: Sequence[str], config: EvaluateConfig, ledger: Ledger
) -> None:
    """Adds `prompt`, `completion` and `truncated` (nothing but `max_new_tokens` ended it) of each sample to the ledger.

    Batches do not depend on what the ledger already holds, so that a run which was cut short goes on to the same
    completions.
    """
    tokenizer, device = candidate.tokenizer, find_device(config.device)
    ids = {key: tokenizer.encode_prompt(prompt) for key, prompt in prompts.items()}
    context = candidate.generator.context
    check_lengths(candidate.name, context, {task: len(tokens) for (task, _), tokens in ids.items()})
    order = sorted(ids, key=lambda key: len(ids[key]))
    batches = [(start, order[start : start + config.batch_size]) for start in range(0, len(order), config.batch_size)]
    wanted = [(start, batch) for start, batch in batches if ledger.lacking(batch, "completion")]
    for start, batch in bar(wanted, f"generating with {candidate.name}", len(wanted)):
        done = generate(
            candidate.generator,
            [ids[key] for key in batch],
            max_new_tokens=config.max_new_tokens,
            end_ids=tokenizer.end_ids,
            temperature=config.temperature,
            seed=config.seed + start,
            stop=stop_at(tokenizer.decode, stops),
            device=device,
        )
        facts = {}
        for key, new in zip(batch, done, strict=True):
            text = tokenizer.decode(new)
            kept = truncate(text, stops)
            room = config.max_new_tokens if context is None else min(config.max_new_tokens, context - len(ids[key]))
            cut = len(new) >= room and kept == text
            facts[key] = {"prompt": prompts[key], "completion": kept, "truncated": cut}
        ledger.add(facts)


def check_lengths(name: str, context: int | None, sizes: Mapping[str, int]) -> None:
    """Raises UserError that names the problems whose prompts, of so many tokens, leave a model no room to answer."""
    long = [f"{task} ({size})" for task, size in sizes.items() if context is not None and size >= context]
    if long:
        more = f" and {len(long) - NAMED} more" if len(long) > NAMED else ""
        raise UserError(
            f"{name} reads {context} tokens, and {len(long)} of {len(sizes)} prompts leave it no room to answer:"
            f" {', '.join(long[:NAMED])}{more}: leave them out, or choose a model with a longer context"
        )


def stop_at(decode: Callable[[list[int]], str], stops: Sequence[str], tail: int = 12) -> Callable[[list[int]], bool]:
    """Whether the newest tokens complete a stop; the last `tail` tokens hold the longest of them."""

    def done(new: list[int]) -> bool:
        text = decode(new[-tail:])
        return any(stop in text for stop in stops)

    return done
