"""The runs of an experiment: what is missing is run, nothing twice, and a report is made of all.

    python -m lepton_jax.main --config=configs/ablate.py:mask_rate --workdir=runs/mask_rate

ARG is a file of `experiments/` (`mask_rate`) or a path (`mine/warmup.py`). Each run is an ordinary one, in the folder
of the hash of its config; `report.html`, `report.md`, `tables/` and `figures/` are made from these folders.

    --config.dry_run=True           the runs, their FLOPs and the expected time; nothing runs
    --config.only='mask_rate 0.3'   those whose name or hash this is part of
    --config.workers=2              so many at once, or --config.gpus='("0","1")' one a GPU
    --config.where=slurm            as an array of jobs: --config.slurm.partition=gpu --config.slurm.gpus=1 ...
    --config.where=commands         prints a plain command for each; for TPU VMs for instance with
        --config.template='gcloud compute tpus tpu-vm ssh tpu-{index} --zone=ZONE --worker=all --command={quoted}'

Its time is that of the runs. The command ends with code 1 where some failed; the same command tries them again.
"""

from ml_collections import ConfigDict

from lepton_jax.recipes import of_experiment


def get_config(arg: str = "") -> ConfigDict:
    """Returns the stage for the experiment in a file, or of that name."""
    return of_experiment("ablate", __file__, arg)
