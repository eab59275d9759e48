"""Launchers: run one command on many devices of this machine, under Slurm, on a TPU pod, on Kubernetes, in sweeps."""
