# shellcheck shell=bash disable=SC2034
# What differs from site to site, read by slurm/submit and by every job. Edit it, or copy it and name the copy in
# ALLOSAUR_SITE, to keep it out of the tree.

# The program; empty: the one that was built in this tree, or installed with this folder.
ALLOSAUR=''

# For sbatch, for every job: the partition, account, quality of service and the like.
SBATCH_FLAGS=() # (--partition=gpu --account=vision)

# For sbatch, phase by phase. A rank drives one GPU, or --cpus-per-task cores. Choose GPUs with --gpus-per-node:
# --gpus-per-task hides the GPUs of a node's other ranks, which NCCL wants to see.
CURATE_RESOURCES=(--nodes=1 --ntasks-per-node=2 --time=12:00:00)
PRETRAIN_RESOURCES=(--nodes=1 --ntasks-per-node=2 --time=12:00:00) # (--nodes=4 --ntasks-per-node=8 --gpus-per-node=8)
EVALUATE_RESOURCES=(--nodes=1 --ntasks-per-node=2 --time=4:00:00)

# mpirun: the Open MPI that allosaur was built with. srun: where Slurm was built with PMIx (srun --mpi=list).
LAUNCHER=mpirun

# What runs allosaur in a container; empty: nothing.
CONTAINER=() # (apptainer exec --nv --bind /data allosaur.sif)

# Run at the start of every job.
prepare() {
  : # module load gcc openmpi hdf5
}

# Jobs that stop early with a checkpoint, or lose a node, are requeued this often.
MAX_RESTARTS=100
