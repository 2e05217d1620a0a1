# shellcheck shell=bash disable=SC2034
# The site of tests/slurm/run: two nodes with one rank each. ALLOSAUR comes from the environment.
SBATCH_FLAGS=(--nodes=2 --ntasks-per-node=1 --time=30)
CURATE_RESOURCES=() PRETRAIN_RESOURCES=() EVALUATE_RESOURCES=()
LAUNCHER=${TEST_LAUNCHER:-mpirun}
CONTAINER=(env CONTAINED=yes)
prepare() { export OMPI_MCA_mpi_yield_when_idle=1; } # the two nodes share the cores of one machine
MAX_RESTARTS=${TEST_RESTARTS:-3}
