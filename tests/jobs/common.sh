# shellcheck shell=bash
# Sourced by the tests of the real program, each of which is called as TEST PROGRAM MPIRUN...
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/wait_for.sh
source "$here/../wait_for.sh"
program=$1
shift
mpirun=("$@")
ranks2=("${mpirun[@]}" -n 2 "$program")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# check NAME EXPECTED_CODE PATTERN COMMAND...: the command's exit code and a pattern that its output (both streams) contains.
check() {
  local name=$1 expected=$2 pattern=$3 code
  shift 3
  "$@" >"$folder/output" 2>&1
  code=$?
  if [[ $code -ne $expected ]] || ! grep -q -e "$pattern" "$folder/output"; then
    fail "$name: exit code $code (expected $expected), looking for '$pattern' in:"
    cat "$folder/output"
  fi
}

# holds NAME <<'EOF': assertions about files below $folder, in Python with the words of files.py.
holds() {
  { echo "from files import *" && cat && echo "print('holds')"; } >"$folder/assertions.py"
  check "$1" 0 '^holds$' env -C "$folder" PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" "$python" assertions.py
}
# The first Python that can read HDF5, or none: a test that calls holds says `need_python`.
need_python() {
  for python in $(type -ap python3); do
    "$python" -c 'import h5py' 2>/dev/null && return
  done
  echo "skipped: no python3 with h5py is installed"
  exit 77
}
