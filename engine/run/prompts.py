"""From which number of tokens on a prompt's batch runs on the device alone, by what bus and CPU do here."""

from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.plan import USUAL_BUS
from hotcold.engine.run.executor import Executor

ON_THE_EMULATED = (
    "the emulated device is slower than the CPU, so no rows are sent to it; --stream-batch N sends them"
)


def settle_prompts(executor: Executor) -> str:
    """Decide it where rows may be sent, measured if it was left open; what -v says of it, "" for nothing."""
    streaming, steps = executor.plan.streaming, executor.run_steps
    if streaming is None:
        if executor.plan.not_streamed:
            return f"prompts: {executor.plan.not_streamed}"
        devices, lacks = executor.devices, any(split.n_hot < split.n_ff for split in executor.plan.layers)
        return f"prompts: {ON_THE_EMULATED}" if devices and devices[0].is_emulated and lacks else ""
    held = f"{mib(streaming.sent_bytes)} are sent for each"
    if streaming.stays:
        held += f", and on the CPU stay {', '.join(streaming.stays)}"
    if executor.plan.not_streamed:
        held += f", and nothing for {executor.plan.not_streamed}"
    if streaming.asked is not None:
        return (
            f"prompts: batches of {streaming.asked} tokens and more run on the device, as asked for; {held}"
        )
    sent = [each.weight for piece in streaming.pieces for each in piece.sent]
    bus = executor.bus_speed() or USUAL_BUS
    products = executor.products_a_second(max(sent, key=lambda weight: weight.n_bytes))
    steps.stream_from = streaming.pays_from(bus, products)
    speeds = f"at {bus / 1e9:.1f} GB/s, {1e3 * streaming.sent_bytes / bus:.1f} ms"
    instead = f"the CPU takes {1e3 * streaming.work / products:.2f} ms a token for the same"
    if steps.stream_from > executor.n_batch:
        return f"prompts: sending {mib(streaming.sent_bytes)} {speeds}, never pays for {executor.n_batch} tokens: {instead}"
    return f"prompts: batches of {steps.stream_from} tokens and more run on the device; {held}, {speeds}; {instead}"
