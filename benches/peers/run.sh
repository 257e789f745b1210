#!/bin/bash
# Measures load balancers for the ingress gateways side by side.  Root; Linux with network namespaces.
#   ./run.sh [SUBJECT...]      full: 3 interleaved rounds, under 10 minutes
#   QUICK=1 ./run.sh           1 short round, under 2 minutes
#   ROUNDS=5 OUT=dir IDLE=0 ./run.sh envoy mylb
# bench.py builds fresh namespaces for every subject and round.  Everything runs in namespaces named lbp-*; they and what runs in them are removed at exit.
set -u
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/lib.sh"
[ "$(id -u)" = 0 ] || die "needs root"
for t in nginx haproxy wrk iperf3 nft ip nsenter cc; do command -v $t >/dev/null || die "needs $t"; done
SUBJECTS=("$@")
[ ${#SUBJECTS[@]} -gt 0 ] || SUBJECTS=(direct ecmp envoy haproxy nginx nft)
args=()
if [ -n "${QUICK:-}" ]; then args+=(--quick --rounds "${ROUNDS:-1}"); else args+=(--rounds "${ROUNDS:-3}"); fi
[ -n "${QUICK:-}" ] && export QUIET_WAIT=${QUIET_WAIT:-0}   # quick: disturbed measurements are counted, not run again
[ -n "${IDLE:-}" ] && args+=(--idle "$IDLE")
[ -n "${OUT:-}" ] && args+=(--out "$OUT")

mkdir -p "$STATE"
exec 9>"$STATE/lock"; flock -n 9 || die "another run holds $STATE/lock"
topo_down                                  # leftovers of a run that was killed
trap 'topo_down; rm -f "$STATE"/*.pids' EXIT
trap 'exit 130' INT TERM
build_tools
ulimit -n "$(ulimit -Hn)"
rm -f "$STATE"/*.pids
python3 "$HERE/bench.py" "${args[@]}" "${SUBJECTS[@]}" 9>&-
