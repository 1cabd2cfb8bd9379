"""A run that meets a misfortune: `failing_run.py MISFORTUNE FLAGS OF train.py…`.

`kill-PHASE` ends the process at once, as a power cut would, in that phase of saving step 4; `sigterm-save` sends
SIGTERM twice, the second time in the middle of the save.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage import store, train
from tutelage.training import checkpoint

AT = "step-4"


def before(owner: Any, name: str, action: Callable[[], None], applies: Callable[..., bool]) -> None:
    """Makes `owner.name` do `action` first, in the calls that `applies` is true of."""
    original = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        if applies(*args):
            action()
        return original(*args, **kwargs)

    setattr(owner, name, changed)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def of_step(*args: Any) -> bool:
    return any(AT in str(arg) for arg in args)


def of_file(name: str) -> Callable[..., bool]:
    return lambda path, *_: path.name == name and of_step(path)


def published(path: Path) -> bool:
    return path.name == "checkpoints" and (path / AT).exists()


def at_step_3(parts: Any, config: Any, state: Any) -> bool:
    return bool(state.step == 3)


MISFORTUNES: dict[str, list[tuple[Any, str, Callable[[], None], Callable[..., bool]]]] = {
    "kill-first-file": [(checkpoint, "save_student", kill, of_step)],
    "kill-last-file": [(Path, "write_text", kill, of_file("state.json"))],
    "kill-hashing": [(store, "sha256", kill, of_file("rng.safetensors"))],
    "kill-flushing": [(store, "_flush", kill, of_step)],
    "kill-before-rename": [(Path, "rename", kill, of_step)],
    "kill-after-rename": [(store, "_flush", kill, published)],
    "kill-removing": [(shutil, "rmtree", kill, lambda path, *_: path.name == "step-2")],
    "sigterm-save": [(train, "train_step", terminate, at_step_3), (store, "sha256", terminate, of_step)],
}

if __name__ == "__main__":
    for misfortune in MISFORTUNES[sys.argv[1]]:
        before(*misfortune)
    sys.exit(train.main(sys.argv[2:]))
