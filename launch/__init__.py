"""Launchers: one command on many devices of this machine, under Slurm, on a TPU pod, under Kubernetes, in sweeps."""
