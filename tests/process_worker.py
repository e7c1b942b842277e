"""The command line as one of several processes, for test_processes.py: it keeps its batches, and can come to harm.

The variable WORKER holds JSON: `record`, a folder for the batches; and what happens before batch n, counted from 0, is
put on the devices: `pause` seconds before each, SIGTERM to itself at `terminate`, an exception at `fail`, a loss that
is not finite at those of `poison`, its end at `leave` once the checkpoint `after` is there. `heartbeat` is how soon
JAX notices a death.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

import lepton_jax.checkpoint  # noqa: F401  # whose setting is changed below
from lepton_jax import main
from lepton_jax.core import sharding

options = json.loads(os.environ["WORKER"])
put, count = sharding.put_batch, 0


def put_batch(batch, mesh):
    global count
    number, count = count, count + 1
    time.sleep(options.get("pause", 0))
    if number == options.get("terminate"):
        os.kill(os.getpid(), signal.SIGTERM)
    if number == options.get("fail"):
        raise OSError("the disk is gone")
    if number in options.get("poison", ()):
        batch = {**batch, "weight": np.full_like(batch["weight"], np.inf)}
    if number == options.get("leave"):
        while not Path(options["after"]).exists():
            time.sleep(0.05)
        os._exit(9)
    np.savez(Path(options["record"]) / f"{number}_{jax.process_index()}.npz", **batch)
    return put(batch, mesh)


sharding.put_batch = put_batch
# Each process saves its part of every array, small ones too.
ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = 0
if "heartbeat" in options:
    jax.distributed.initialize = functools.partial(
        jax.distributed.initialize, heartbeat_timeout_seconds=options["heartbeat"]
    )
sys.argv[0] = "main.py"
main.main()
