"""The Mac, or the iPhone attached to it, to measure on: whether that can be, and what it says of itself.

Written against coremltools 9's own signatures: none of it has been run on Apple hardware.
"""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vigcli.coreml.apple import coremltools
from vigcli.coreml.device_worker import EXPERIMENTAL
from vigcli.errors import UnavailableError

PAGE = "docs/measure_on_a_mac.md"


class Target(NamedTuple):
    """What to measure on.

    Attributes:
        compute_units: a name of `coremltools.ComputeUnit`, that CoreML may choose from.
        name: what people call the device; empty leaves it to the machine.
        team: of the Apple developer account that signs coremltools' app; for an iPhone alone.
    """

    kind: Literal["mac", "iphone"]
    compute_units: str = "ALL"
    name: str = ""
    team: str = ""


class Machine(NamedTuple):
    """The device and the Mac, as rows name them; `udid` finds an iPhone again and is written nowhere."""

    device: str
    soc: str
    os: str
    where: str
    coremltools: str
    xcode: str
    udid: str = ""


def check_can_measure(target: Target, page: str = PAGE) -> None:
    """Raise UnavailableError on another system than macOS, and for an iPhone without a signing team.

    Args:
        page: of the documentation, that tells what to do.
    """
    if platform.system() != "Darwin":
        hint = f"Use --dry-run to write the packages here, and {page} on a Mac."
        raise UnavailableError(f"--device {target.kind}: CoreML runs on macOS alone.", hint)
    if target.kind == "iphone" and not target.team:
        hint = f"Pass --team ID; {PAGE} says where it is found."
        raise UnavailableError("--device iphone: an app must be signed to run there.", hint)


def machine_of(target: Target, said: Callable[[Sequence[str]], str] | None = None) -> Machine:
    """What macOS says of itself, and for an iPhone what `devicectl` says of the one that is connected.

    Raises UnavailableError where none or several are, and for an iPhone whose name is not known.
    """
    said = said or _said
    model, chip = said(("sysctl", "-n", "hw.model")), said(("sysctl", "-n", "machdep.cpu.brand_string"))
    macos = f"macOS {said(('sw_vers', '-productVersion'))} ({said(('sw_vers', '-buildVersion'))})"
    versions = version("coremltools"), said(("xcodebuild", "-version")) or "no Xcode"
    if target.kind == "mac":
        return Machine(target.name or model, chip, macos, f"{model}, {chip}", *versions)
    phone = connected_iphone()
    hardware = _hardware(said, phone.udid)
    name = target.name or str(hardware.get("marketingName", ""))
    if not name:
        raise UnavailableError("the iPhone does not say what model it is.", 'Say it: --name "iPhone 13 mini".')
    product = str(hardware.get("productType", "model not said"))
    system = f"iOS {phone.os_version} ({phone.os_build_number})"
    return Machine(name, product, system, f"{product} at a {model}, {macos}", *versions, udid=phone.udid)


def connected_iphone() -> Any:
    """The one iPhone (`remote_device.Device`) that is connected. Raises UnavailableError."""
    coremltools()
    remote = import_module(f"{EXPERIMENTAL}.remote_device")
    try:
        found = remote.Device.get_connected_devices(remote.DeviceType.IPHONE)
    except Exception as error:  # coremltools' own, of a private type: Xcode's tools are missing or refuse
        raise UnavailableError(f"Xcode's devicectl does not list devices: {error}.", f"See {PAGE}.") from error
    if len(found) != 1:
        hint = f"Attach one, unlock it, trust this Mac and turn on its developer mode: {PAGE}."
        raise UnavailableError(f"--device iphone: {len(found) or 'none'} connected.", hint)
    return found[0]


def _hardware(said: Callable[[Sequence[str]], str], udid: str) -> dict[str, Any]:
    """What `devicectl` knows of a device's hardware; coremltools keeps of it the type alone."""
    with tempfile.TemporaryDirectory(prefix="vig-") as folder:
        path = Path(folder) / "devices.json"
        said(("xcrun", "devicectl", "list", "devices", "--json-output", str(path)))
        try:
            devices = json.loads(path.read_text(encoding="utf-8"))["result"]["devices"]
            found = [d["hardwareProperties"] for d in devices if d["hardwareProperties"].get("udid") == udid]
            return dict(found[0])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}


def _said(command: Sequence[str]) -> str:
    """What a command of macOS prints, on one line; nothing where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""
