"""What is told of a card that another program has filled, and of one on which a kernel has failed.

python bench/trouble.py                        the first card
python bench/trouble.py --device emulated      the failed kernel alone

Ends with 1 if the CPU does not take over from a full card, or if the error of a kernel is not seen.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

from hotcold.engine.device.choice import DeviceChoice, parse_device
from hotcold.engine.device.devices import open_device
from hotcold.errors import DeviceError, DoesNotFitError
from hotcold.kernels.cuda.add import add
from hotcold.kernels.cuda.device.device import Device

LEFT = 64 << 20
"""Bytes that stay free: too few for another program's context."""
SMALLEST = 8 << 20
"""Bytes that are asked for at least where a card does not give all that it says is free."""
OUT_OF_BOUNDS = 1 << 28
"""Numbers that a kernel reads of a buffer of eight: so far behind it that nothing is there."""
SECONDS = 120.0


def opened(choice: DeviceChoice) -> Device:
    """The device; the CPU is none."""
    device = open_device(choice)
    if device is None:
        raise SystemExit("--device cpu: there is no card to bring into trouble")
    return device


def fill(device: Device) -> None:
    """Take all of its memory but a little, until it is closed; in pieces where it does not give it in one."""
    wanted = device.memory()[0] - LEFT
    while wanted >= SMALLEST:
        try:
            device.empty(wanted, "u1")
            wanted = device.memory()[0] - LEFT
        except DoesNotFitError:
            wanted //= 2


def name_of_card(index: int) -> str:
    """By which another process sees this card alone."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[index] if named else str(index)


def text_beside_it(index: int) -> subprocess.CompletedProcess[str]:
    """What `auto` makes of that card in another process."""
    words = "generate", "-p", "Once upon a time", "-n", "8", "--temp", "0", "--json", "--device", "auto"
    visible = {"CUDA_VISIBLE_DEVICES": name_of_card(index)}
    return subprocess.run(
        (sys.executable, "-m", "hotcold", *words),
        env=os.environ | visible,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def taken_over(done: subprocess.CompletedProcess[str]) -> str:
    """Why the CPU has not taken over, with a line that says so; "" if it has."""
    if done.returncode:
        return f"exit code {done.returncode}"
    where = json.loads(done.stdout)["device"]
    if where != "cpu":
        return f"the text is from {where}"
    return "" if "cuda:0" in done.stderr or "runs on the CPU" in done.stderr else "nothing is said"


def failed_kernel(device: Device) -> str:
    """What is told of a kernel that reads what is not there; "" if nothing is. The device closes all the same."""
    x = device.empty(8, "f4")
    try:
        add(OUT_OF_BOUNDS).launch(device, (x, x, x, OUT_OF_BOUNDS), device.compute)
        device.synchronize()
    except DeviceError as error:
        return str(error)
    finally:
        device.close()
    return ""


def run(given: Sequence[str] | None = None) -> int:
    """Bring a card into trouble; 1 if what is told is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated")
    choice = parse_device(parser.parse_args(given).device)
    device, problems = opened(choice), list[str]()
    if choice.kind == "cuda":
        with device:
            fill(device)
            done = text_beside_it(choice.index or 0)
        print(f"a full card: {done.stderr.strip()}")
        problems.append(taken_over(done))
        device = opened(choice)
    told = failed_kernel(device)
    print(f"a failed kernel: {told or 'nothing is said'}")
    problems.append("" if told else "the error of a kernel is not seen")
    for problem in filter(None, problems):
        print(f"wrong: {problem}")
    return 1 if any(problems) else 0


if __name__ == "__main__":
    raise SystemExit(run())
