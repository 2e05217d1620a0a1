#!/usr/bin/env bash
# expect.sh CODE PATTERN COMMAND...: the command must end within 10 seconds, with this exit code ("any" but 0, or a number),
# and print exactly one line that matches the extended regular expression PATTERN, beside no other line of an error of ours.
set -u
code=$1 pattern=$2
shift 2

start=$(date +%s%N)
output=$(timeout --kill-after=2 20 "$@" 2>&1 < /dev/null)
result=$?
milliseconds=$((($(date +%s%N) - start) / 1000000))
echo "$output"
echo "exit code $result after $milliseconds ms"

fail() {
  echo "FAILED: $*"
  exit 1
}
[ "$milliseconds" -le 10000 ] || fail "it took longer than 10 s"
if [ "$code" = any ]; then
  [ "$result" -ne 0 ] || fail "the exit code is 0"
else
  [ "$result" -eq "$code" ] || fail "the exit code is not $code"
fi
[ "$(grep -cE "$pattern" <<< "$output")" -eq 1 ] || fail "not exactly one line matches: $pattern"
[ "$(grep -c '^error: ' <<< "$output")" -le 1 ] || fail "more than one message of ours"
