#!/bin/sh
# Runs traffic.py through Envoy or Headgate as front.yaml says, in throw-away network namespaces, as root:
#
#   by-hand.sh envoy PATH [OPTION...]                            PATH is the envoy binary
#   by-hand.sh headgate PATH [OPTION...]                         for example --datapath tc
#
# $OUT (default: compare-NAME in the current directory) gets client.jsonl, access.json, access.txt, the balancer's
# own log, and the admin port's pages. $CASE runs one case. The end status is that of the client.
#
#   client 10.201.0.2 --- 10.201.0.1 balancer 10.202.0.1 --- 10.202.0.11 .12 .13 backends, .14 that answers no SYN
set -eu

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2
    exit 2
}

[ $# -ge 2 ] || usage
kind=$1
binary=$(realpath "$2")
shift 2
case $kind in envoy | headgate) ;; *) usage ;; esac
here=$(dirname "$(realpath "$0")")
out=$(realpath -m "${OUT:-compare-$kind}")
# Numbers of our own, so that two runs at once do not meet.
client=cmp-$$-c balancer=cmp-$$-b backends=cmp-$$-s
backend_pid='' balancer_pid=''

in_ns() { namespace=$1; shift; nsenter --net="/run/netns/$namespace" "$@"; }

# Ends what was started here and nothing else, by its process id.
stop() {
    [ -n "$1" ] || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    tries=0
    while kill -0 "$1" 2>/dev/null && [ $tries -lt 50 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
    stop "$balancer_pid"
    if [ $kind = headgate ] && [ -n "$balancer_pid" ]; then
        in_ns "$balancer" "$binary" unload --bpffs "/sys/fs/bpf/$balancer" --run-dir "$out/run" \
            >>"$out/balancer.log" 2>&1 || true
        rmdir "/sys/fs/bpf/$balancer" 2>/dev/null || true
    fi
    stop "$backend_pid"
    for namespace in "$client" "$balancer" "$backends"; do
        ip netns delete "$namespace" 2>/dev/null || true
    done
}
trap clean_up EXIT
trap 'exit 130' INT TERM

mkdir -p "$out"
rm -f "$out"/access.* "$out"/client.jsonl
for namespace in "$client" "$balancer" "$backends"; do
    ip netns add "$namespace"
    ip -n "$namespace" link set lo up
done
ip link add eth0 netns "$client" type veth peer name front netns "$balancer"
ip link add eth0 netns "$backends" type veth peer name back netns "$balancer"
ip -n "$client" address add 10.201.0.2/24 dev eth0
ip -n "$balancer" address add 10.201.0.1/24 dev front
ip -n "$balancer" address add 10.202.0.1/24 dev back
for last in 11 12 13 14; do
    ip -n "$backends" address add 10.202.0.$last/24 dev eth0
done
case " $* " in
*xdp*)
    # Over veth, XDP wants whole checksums from the far ends, and a far end takes its frames if it has a program or GRO.
    for namespace in "$client" "$backends"; do
        in_ns "$namespace" ethtool -K eth0 tx off gro on >/dev/null
    done
    ;;
esac
ip -n "$client" link set eth0 up
ip -n "$backends" link set eth0 up
ip -n "$balancer" link set front up
ip -n "$balancer" link set back up
# The address must be somebody's: one that no ARP request finds is an error of the network, not a silent backend.
in_ns "$backends" nft -f - <<RULES
table ip dead {
    chain input {
        type filter hook input priority 0;
        ip daddr 10.202.0.14 drop
    }
}
RULES

nsenter --net="/run/netns/$backends" python3 "$here/traffic.py" backend 10.202.0.11 10.202.0.12 10.202.0.13 \
    >"$out/backends.log" 2>&1 &
backend_pid=$!
cd "$out"
if [ $kind = envoy ]; then
    nsenter --net="/run/netns/$balancer" "$binary" -c "$here/front.yaml" --concurrency 1 --disable-hot-restart \
        --log-level warning "$@" >balancer.log 2>&1 &
else
    nsenter --net="/run/netns/$balancer" "$binary" run -c "$here/front.yaml" --bpffs "/sys/fs/bpf/$balancer" \
        --run-dir "$out/run" --state-dir "$out/state" "$@" >balancer.log 2>&1 &
fi
balancer_pid=$!

page() { in_ns "$balancer" curl --silent --max-time 5 "http://127.0.0.1:8001$1"; }

# Envoy takes seconds to start on a busy machine.
tries=0
until [ "$(page /ready)" = LIVE ] && grep -q listening backends.log; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ] || ! kill -0 "$balancer_pid" 2>/dev/null; then
        echo "the balancer is not ready; its log:" >&2
        cat balancer.log >&2
        exit 3
    fi
    sleep 0.1
done

status=0
in_ns "$client" python3 "$here/traffic.py" client --vip 10.201.0.1 ${CASE:+--case "$CASE"} | tee client.jsonl
[ "$(grep -c '"wrong": null' client.jsonl)" = "$(wc -l <client.jsonl)" ] || status=1

# Envoy writes its log and moves its histograms every few seconds.
sleep 11
page /stats/prometheus >prometheus.txt
page /stats >stats.txt
page /clusters >clusters.txt
page '/clusters?format=json' >clusters.json
page /listeners >listeners.txt
page /server_info >server_info.json
echo "--- access.json"
cat access.json
echo "--- access.txt"
cat access.txt
echo "--- the pages are in $out"
exit $status
