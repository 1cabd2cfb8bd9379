"""Which device a process computes on."""

import torch

from tutelage.errors import UserError

KINDS = ("cpu", "cuda", "mps")


def find_device(name: str = "auto", local_rank: int = 0, processes: int = 1) -> torch.device:
    """The device that `--device` names, made the current one: auto, cpu, cuda, cuda:N or mps.

    "auto" is CUDA where there is one, else MPS, else the CPU; each of several processes on a machine has the CUDA
    device of its local rank. Raises UserError for a device that is unknown or that cannot be used here.
    """
    device = torch.device(_best(processes)) if name == "auto" else _parse(name, processes)
    if device.type == "cpu":
        return torch.device("cpu")
    try:
        if device.type == "cuda":
            device = _cuda(device, local_rank, processes)
        torch.empty(0, device=device)
    except UserError:
        raise
    except Exception as error:  # a missing or old driver, a build without the device: each raises its own kind
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--device {name} is not available here ({reason}): use auto or cpu") from error
    return device


def _best(processes: int) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and processes == 1 else "cpu"


def _parse(name: str, processes: int) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise UserError(f"--device {name} is not available: choose auto, cpu, cuda, cuda:N or mps")
    if processes > 1 and (device.type == "mps" or (device.type == "cuda" and device.index is not None)):
        way = "use cuda, which gives each its own" if device.type == "cuda" else "use cpu, or one process"
        raise UserError(f"--device {name} is one device and there are {processes} processes: {way}")
    return device


def _cuda(device: torch.device, local_rank: int, processes: int) -> torch.device:
    """The device with its number, and current: kernels, NCCL and FSDP go by the current one."""
    if device.index is None:
        device = torch.device("cuda", local_rank if processes > 1 else torch.cuda.current_device())
    there = torch.cuda.device_count()
    if there and device.index >= there:
        raise UserError(
            f"{device} is wanted and this machine has {there} CUDA device{'s' * (there > 1)}: start as many processes"
            " on it as it has, or use --device cpu"
        )
    torch.cuda.set_device(device)
    return device
