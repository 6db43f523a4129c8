#!/bin/bash
# SPDX-License-Identifier: MIT
# sbatch slurm.sh ARGUMENTS OF main.py      (in DeiT's folder)
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=80
#SBATCH --time=24:00:00
# SIGTERM five minutes before the time is over, to every torchrun. See LOFI_ON_SIGTERM below.
#SBATCH --signal=TERM@300

# One task, so one torchrun, on each machine: what it starts is a lo-fi node.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LOFI_ON_SIGTERM=average # told to end, the nodes average where they are
export LOFI_TIMEOUT=7200       # seconds that nodes wait for slower ones

# Single quotes: SLURM_NODEID is each machine's own.
srun bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
    --nproc-per-node 8 --master-addr "$MASTER_ADDR" --master-port 29500 \
    -m lofi main.py "$@"' main "$@"
