# shellcheck shell=bash
# Sourced: a Slurm cluster of two nodes on this machine, thrown away at the end. Needs root.
#
#   cluster_start FOLDER     starts it; FOLDER is absolute, short (it holds Unix sockets) and not below a private folder
#   cluster_stop             ends every process of it
#   job_field ID NAME        a field of `scontrol show job`, for instance JobState
#
# A node is a slurmd in its own UTS, PID and mount namespace: its own host name and /dev/shm, without which Open MPI takes
# two nodes for one, and one process whose end is the end of all that runs on the node.

# shellcheck source=tests/wait_for.sh
source "$(dirname "${BASH_SOURCE[0]}")/../wait_for.sh"

cluster_configuration() {
  local port=$1 node
  cat <<CONFIGURATION
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for the old credential to expire: two minutes by default.
AuthInfo=socket=$CLUSTER/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=$CLUSTER/spool.%n
TmpFS=$CLUSTER/tmp.%n
SlurmctldPidFile=$CLUSTER/slurmctld.pid
SlurmdPidFile=$CLUSTER/slurmd.%n.pid
SlurmctldLogFile=$CLUSTER/log/slurmctld
SlurmdLogFile=$CLUSTER/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
# More CPUs than the machine has, so that any machine can hold two nodes.
SlurmdParameters=config_overrides
ReturnToService=2
MessageTimeout=10
KillWait=5
PartitionName=main Nodes=ALL Default=YES State=UP
CONFIGURATION
  for node in 0 1; do
    echo "NodeName=n$node NodeHostname=n$node NodeAddr=127.0.0.1 Port=$((port + 1 + node)) CPUs=4 RealMemory=1000"
  done
}

# Starts COMMAND in the background with its output in log/NAME.out: in_background NAME COMMAND...
in_background() {
  "${@:2}" </dev/null >"$CLUSTER/log/$1.out" 2>&1 &
  cluster_processes+=($!)
}

cluster_start() {
  CLUSTER=$1 cluster_processes=()
  local node
  mkdir -p "$CLUSTER"/{munge,state,log}
  chmod 755 "$CLUSTER" "$CLUSTER/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$CLUSTER/munge/key")
  in_background munged munged --foreground --key-file="$CLUSTER/munge/key" --socket="$CLUSTER/munge/socket" \
    --pid-file="$CLUSTER/munge/pid" --seed-file="$CLUSTER/munge/seed" --log-file="$CLUSTER/munge/log"
  wait_for 10 munge --no-input --socket "$CLUSTER/munge/socket" >/dev/null || return 1

  export SLURM_CONF=$CLUSTER/slurm.conf
  cluster_configuration $((20000 + $$ % 4000 * 3)) >"$SLURM_CONF"
  in_background slurmctld slurmctld -D -c -i -f "$SLURM_CONF"
  for node in n0 n1; do
    mkdir "$CLUSTER/spool.$node" "$CLUSTER/tmp.$node"
    # shellcheck disable=SC2016
    in_background slurmd.$node unshare --uts --pid --fork --kill-child=KILL --mount-proc sh -c '
      hostname "$1"
      mount -t tmpfs -o mode=1777 tmpfs /dev/shm
      mount -t tmpfs -o mode=1777 tmpfs "$2"
      exec slurmd -D -N "$1"' sh $node "$CLUSTER/tmp.$node"
  done
  wait_for 20 nodes_are_idle
}

nodes_are_idle() { [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" = idle ]; }

cluster_stop() {
  scancel --full --user=root 2>/dev/null
  wait_for 10 test -z "$(squeue --noheader 2>/dev/null)"
  kill -KILL "${cluster_processes[@]}" 2>/dev/null
  wait "${cluster_processes[@]}" 2>/dev/null
}

job_field() { scontrol --oneliner show job "$1" 2>/dev/null | grep -oP "(^| )$2=\K\S+"; }
