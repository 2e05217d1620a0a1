# shellcheck shell=bash
# Sourced. wait_for SECONDS COMMAND...: until the command succeeds; fails after that time.
wait_for() {
  local deadline=$((SECONDS + $1))
  until "${@:2}" 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.05
  done
}
