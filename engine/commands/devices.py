"""`hotcold devices`: what --device can name."""

import json
from dataclasses import dataclass

from hotcold.engine.commands.options import Json
from hotcold.engine.commands.terminal import columns, write_line


@dataclass(frozen=True, kw_only=True)
class DevicesCommand:
    """Devices that can be used, and what the others lack."""

    as_json: Json = False

    def run(self) -> None:
        """Look, print."""
        from hotcold.engine.device.devices import describe_devices, devices_json, render_devices

        found = describe_devices()
        write_line(json.dumps(devices_json(found)) if self.as_json else render_devices(found, columns()))
