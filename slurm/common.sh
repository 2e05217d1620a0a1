# shellcheck shell=bash
# Sourced by the job scripts: run_job PHASE FLAG... runs one phase of allosaur on the job's allocation and requeues the job
# when the phase stopped early.
#
# USR1 reaches the job script alone, before the time limit (--signal=B:USR1@300) or from `scancel -s USR1 --batch JOB`. It
# becomes USR1 to the launcher, which passes it to all ranks: they write a checkpoint and exit with 75. So does TERM. When
# Slurm ends a job it sends TERM to every process, and mpirun then kills the ranks after two seconds; ranks take signals
# that come within a second of each other for one request.

ALLOSAUR_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=slurm/site.sh
source "${ALLOSAUR_SITE:-$ALLOSAUR_HOME/slurm/site.sh}"

say() { echo "$(date +%FT%T) job ${SLURM_JOB_ID}: $*"; }

program() {
  local built=$ALLOSAUR_HOME/build/release/app/allosaur installed=$ALLOSAUR_HOME/../../bin/allosaur
  if [ -n "$ALLOSAUR" ]; then echo "$ALLOSAUR"; elif [ -x "$built" ]; then echo "$built"; else echo "$installed"; fi
}

# Whether the job is still meant to run: a cancelled one must not come back. A busy controller is asked again.
is_running() {
  local state pause
  for pause in 1 5 15 30 0; do
    if state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T); then
      [ "$state" = RUNNING ]
      return
    fi
    sleep $pause
  done
  say "squeue does not tell whether the job was cancelled, so it is not requeued; submit it again to go on"
  return 1
}

run_job() {
  local launcher='' stopping=no rc again=no
  trap 'stopping=yes; [ -z "$launcher" ] || kill -USR1 "$launcher" 2>/dev/null' USR1 TERM
  prepare || { say "prepare() of the site settings has failed" && exit 2; }
  say "allosaur $* on ${SLURM_JOB_NODELIST} (restart ${SLURM_RESTART_COUNT:-0})"
  ALLOSAUR_LAUNCHER=$LAUNCHER "$ALLOSAUR_HOME/scripts/launch" "${CONTAINER[@]}" "$(program)" "$@" &
  launcher=$!
  [ $stopping = no ] || kill -USR1 "$launcher"
  # A trap interrupts wait; only once the launcher is gone does wait tell its exit code.
  while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done
  wait "$launcher"
  rc=$?

  case $rc in
    75) again=yes && say "stopped early with a checkpoint" ;;
    205) again=yes && say "lost a node" ;; # mpirun says so; under srun Slurm itself requeues
    # USR1 killed a rank that was still starting; srun killed the ranks that had not ended when the first said 75.
    138 | 143) again=$stopping && say "ended by a signal" ;;
  esac
  if [ $again = yes ] && is_running; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
      say "has been restarted $MAX_RESTARTS times, which is the limit of the site settings; submit it again to go on"
    elif scontrol requeue "$SLURM_JOB_ID"; then
      say "requeued"
      trap - TERM # with which Slurm ends this script in a moment
      sleep 60
    fi
  fi
  say "ends with $rc"
  exit $rc
}
