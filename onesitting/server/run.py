"""`onesitting serve`: load the models, open the port, and stop in good order."""

import argparse
import asyncio
import json
import logging
import socket
import sys
from typing import Any

import torch
import uvicorn

from onesitting.config import DeviceConfig
from onesitting.errors import UserError
from onesitting.inference.engine import EngineSettings
from onesitting.runlog import require_folder
from onesitting.server.app import create_app
from onesitting.server.generation import Limits
from onesitting.server.metrics import Metrics
from onesitting.server.models import LoadSettings, ServedModel, load_served, model_names
from onesitting.server.service import Service, new_key, read_keys
from onesitting.train.device import plan_device
from onesitting.train.process import leave_tiles_out
from onesitting.train.teams import in_passing_thread

log = logging.getLogger("onesitting.server")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def serve(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; options are those of `onesitting serve`."""
    if options.new_key:
        key, digest = new_key()
        print(f"key, shown once: {key}\nline for the key file: {options.new_key} {digest}")
        return
    if not options.runs:
        raise UserError("give at least one run or model folder: onesitting serve runs/demo")
    set_up_logs()
    keys = read_keys(options.api_keys or None)
    if options.host not in LOOPBACK and not keys.owners and not options.no_keys:
        raise UserError(
            f"--host {options.host} lets other machines in, and no API key is set; "
            "make one with --new-key NAME, or say --no-keys"
        )
    listener = _listen(options.host, options.port)
    models = in_passing_thread(lambda: _load(options))
    service = Service(
        models=models,
        keys=keys,
        limits=Limits(max_tokens=options.max_tokens, deadline_s=options.deadline_s),
        metrics=Metrics(models),
        max_body_bytes=round(options.max_body_mb * (1 << 20)),
        # On loopback only this machine's own names are right; elsewhere the operator knows the names.
        hosts=frozenset(options.allowed_host) | (LOOPBACK if options.host in LOOPBACK else frozenset()),
        origins=frozenset(options.cors_origin),
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(models)} on http://{shown}:{port}", flush=True)
    asyncio.run(Server(service, options.grace_s).serve([listener]))


class Server(uvicorn.Server):
    """uvicorn with our application: new connections end at a signal, running streams go on to their end."""

    def __init__(self, service: Service, grace_s: float) -> None:
        self.service = service
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http="h11",
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=True,
                proxy_headers=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=round(grace_s),
                h11_max_incomplete_event_size=16_384,
                limit_concurrency=1024,
                backlog=512,
            )
        )

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal: say that no more is taken, and let uvicorn finish."""
        self.service.is_draining = True
        log.info(json.dumps({"event": "draining", "signal": sig}))
        super().handle_exit(sig, frame)


def set_up_logs() -> None:
    """One JSON object a line on stderr: requests, and what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    for name in ("onesitting", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "onesitting" else logging.WARNING)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        fields: dict[str, Any] = json.loads(text) if text.startswith("{") else {"message": text}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        head = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"), "level": record.levelname.lower()}
        return json.dumps({**head, "logger": record.name, **fields})


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the seconds that loading takes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}:{port} ({error}); choose another --port or --host"
        ) from None
    return listener


def _load(options: argparse.Namespace) -> dict[str, ServedModel]:
    named = model_names(options.runs)
    for _, path in named:
        require_folder(str(path))
    plan = plan_device(DeviceConfig(device=options.device), leave_tiles_out())
    plan.apply()
    if options.dtype not in ("auto", *DTYPES):
        raise UserError(f"--dtype is '{options.dtype}'; use auto, {', '.join(DTYPES)}")
    dtype = DTYPES[options.dtype] if options.dtype != "auto" else plan.torch_dtype
    settings = LoadSettings(
        device=plan.torch_device,
        dtype=dtype,
        int8=options.int8,
        context_factor=options.context_factor,
        engine=EngineSettings(n_slots=options.slots, max_waiting=options.queue),
    )
    return {name: load_served(name, path, settings) for name, path in named}
