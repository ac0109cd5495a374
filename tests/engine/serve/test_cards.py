"""A server on two devices: each card's memory is told by itself, and the one that is lost is named."""

from typing import Any

from serving import served

from hotcold import load


def test_two_cards(compiler: str) -> None:
    with (
        load(n_ctx=64, threads=1, device="emulated:0,emulated:1", vram_budget="6MiB,5MiB") as engine,
        served(engine) as server,
    ):
        devices, told = engine.executor.devices, server.ask("/figures").json
        names, budgets = ["emulated:0", "emulated:1"], [6 << 20, 5 << 20]
        assert [(card["device"], card["budget"]) for card in told["cards"]] == list(
            zip(names, budgets, strict=True)
        )
        for card, device in zip(told["cards"], devices, strict=True):
            assert sum(kind["bytes"] for kind in card["memory"]) == card["used"] == device.counters.live_bytes
        lines = server.ask("/metrics").body.decode().splitlines()
        for name, budget, device in zip(names, budgets, devices, strict=True):
            assert f'hotcold_vram_budget_bytes{{device="{name}"}} {float(budget)}' in _plain(lines)
            assert f'hotcold_vram_bytes{{device="{name}"}} {float(device.counters.live_bytes)}' in _plain(
                lines
            )
        driver: Any = devices[1].driver
        driver.streams.drop()
        driver.lost = "a fault of the test"
        answer = server.ask("/v1/completions", {"prompt": "Emma", "max_tokens": 2})
        assert answer.status == 503
        assert "emulated:1: lost (after a fault of the test)" in answer.message


def _plain(lines: list[str]) -> list[str]:
    """Numbers as Python writes them: Prometheus's text has 6.291456e+06."""
    pairs = (line.rpartition(" ") for line in lines if line.startswith("hotcold_vram"))
    return [f"{name} {float(value)}" for name, _, value in pairs]
