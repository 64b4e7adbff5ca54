"""Joining a Ray cluster, or starting a private one that listens on the loopback interface only."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray._private import ray_constants

from pipeline.errors import SluiceError


def start_ray(address: str | None) -> None:
    """Join the cluster at `address`, or start a private one on the loopback interface, without a dashboard."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own handler of SIGTERM prints a stack trace and aborts the driver three seconds later, in mid-farewell.
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "sluice"}
    if address in (None, "local"):
        # Ray's own switch for machines that must not listen on the network; by default it takes the outer address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        # "local": without it Ray would join whatever RAY_ADDRESS or the last `ray start` on this machine names.
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"num_cpus": os.cpu_count()}
    else:
        options |= {"address": address}
    try:
        _knock(address)
        _in_a_lasting_thread(lambda: ray.init(**options))
    except (OSError, ValueError) as error:
        if address is None:
            raise SluiceError(f"Ray does not start on this machine: {error}") from None
        raise SluiceError(
            f"no Ray cluster answers at {address!r}: {error}; "
            "start one, give this shell its RAY_AUTH_TOKEN, or leave --address out"
        ) from None


def _in_a_lasting_thread(start: Callable[[], object]) -> None:
    """Ray's processes ask the kernel to kill them when the thread that started them ends (PR_SET_PDEATHSIG)."""
    started: Future[None] = Future()

    def keep() -> None:
        try:
            start()
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            threading.Event().wait()

    threading.Thread(target=keep, name="sluice-ray", daemon=True).start()
    started.result()


def _knock(address: str | None) -> None:
    """Raise `OSError` at once where nothing listens: Ray itself goes on trying for many minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "://" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
