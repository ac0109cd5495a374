"""Work on two streams: the policies differ only where a wait is missing."""

from collections import deque
from collections.abc import Callable

import pytest

from hotcold.errors import SettingError
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.streams import Mark, Streams

Open = Callable[..., Device]
N, STEPS = 64, 4
POLICIES = [("eager", 0), ("late", 0), ("ahead", 0), *(("random", seed) for seed in range(8))]
WAITS = ("staging", "reuse", "upload", "download")


def pipeline(device: Device, forget: str) -> bool:
    """Upload on one stream, compute on the other, read back; True if every answer is right.

    `forget` names the wait that is left out.
    """
    staging, outs = device.pinned(N, "f4"), [device.pinned(N, "f4") for _ in range(STEPS)]
    x, y = device.empty(N, "f4"), device.empty(N, "f4")
    uploaded, used = device.event(), device.event()
    for step, out in enumerate(outs):
        if forget != "staging":
            uploaded.synchronize()  # the last upload has left the staging buffer
        staging.array[:] = step + 1
        if forget != "reuse":
            device.copy.wait(used)  # the last kernel has read x
        device.upload(x, staging, device.copy)
        uploaded.record(device.copy)
        if forget != "upload":
            device.compute.wait(uploaded)
        device.launch("scale", 1, 32, (x, y, 2.0, N), device.compute)
        used.record(device.compute)
        device.download(out, y, device.compute)
    if forget != "download":
        device.compute.synchronize()
    return all((out.array == 2 * (step + 1)).all() for step, out in enumerate(outs))


@pytest.mark.parametrize(("policy", "seed"), POLICIES)
def test_an_ordered_pipeline_is_right_under_every_policy(
    open_emulated: Open, seam_source: str, policy: str, seed: int
) -> None:
    assert pipeline(open_emulated(source=seam_source, policy=policy, seed=seed), forget="")


@pytest.mark.parametrize("forget", WAITS)
def test_late_catches_every_missing_wait(open_emulated: Open, seam_source: str, forget: str) -> None:
    assert not pipeline(open_emulated(source=seam_source, policy="late"), forget)


@pytest.mark.parametrize("forget", WAITS)
def test_some_random_pace_catches_a_missing_wait(open_emulated: Open, seam_source: str, forget: str) -> None:
    devices = [open_emulated(source=seam_source, policy="random", seed=seed) for seed in range(8)]
    assert not all(pipeline(device, forget) for device in devices)


def test_ahead_catches_a_copy_that_does_not_wait_for_kernels(open_emulated: Open, seam_source: str) -> None:
    def pipelined(forget: str) -> bool:
        return pipeline(open_emulated(source=seam_source, policy="ahead"), forget)

    assert not pipelined("reuse")  # x is written over before it is read
    assert pipelined("upload")  # a kernel that does not wait for a copy is what late catches


def test_eager_runs_work_at_once(open_emulated: Open, seam_source: str) -> None:
    device = open_emulated(source=seam_source, policy="eager")
    assert pipeline(device, "staging")  # as a naive mock would: this is why late is the default


def test_late_runs_no_more_than_was_waited_for(open_emulated: Open, seam_source: str) -> None:
    device = open_emulated(source=seam_source)
    x, a, b = device.empty(1, "f4"), device.pinned(1, "f4"), device.pinned(1, "f4")
    event = device.event()
    a.array[0] = 5
    device.upload(x, a, device.copy)
    event.record(device.copy)
    device.download(b, x, device.copy)
    event.synchronize()
    assert b.array[0] != 5
    device.copy.synchronize()
    assert b.array[0] == 5


def test_an_event_that_nobody_recorded_is_passed(open_emulated: Open, seam_source: str) -> None:
    device = open_emulated(source=seam_source)
    event = device.event()
    event.synchronize()
    device.copy.wait(event)
    device.synchronize()


def test_an_unknown_policy_is_refused(open_emulated: Open, seam_source: str) -> None:
    with pytest.raises(SettingError, match="lazy.*eager, late, ahead, random"):
        open_emulated(source=seam_source, policy="lazy")


def test_ctrl_c_while_work_is_enqueued_leaves_nothing_behind_for_ever() -> None:
    class Interrupted(deque[Callable[[], None]]):
        def append(self, work: Callable[[], None]) -> None:
            super().append(work)
            raise KeyboardInterrupt

    stream, done = Streams("late", 0).new(), list[str]()
    stream.queue = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        stream.enqueue(lambda: done.append("first"))
    stream.queue = deque(stream.queue)
    stream.enqueue(lambda: done.append("second"))
    mark = Mark()
    mark.record(stream)
    mark.synchronize()
    assert done == ["first", "second"]
