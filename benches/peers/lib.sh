# Shared by run.sh and subjectctl: names, addresses, topology, process handling.
# Source it; it defines functions and variables only.
#
#   lbp-client            lbp-lb                           lbp-b1 .. lbp-bN
#   c0 10.200.0.2/24 --- lc0 10.200.0.1/24 (= the VIP)
#                        lb1 10.200.1.1/30  ------------- e0 10.200.1.2/30
#                        lb2 10.200.1.5/30  ------------- e0 10.200.1.6/30
#                        lb3 10.200.1.9/30  ------------- e0 10.200.1.10/30
#
# MAC addresses are fixed (02:00:00:00:00:0x on the client link, 02:00:00:01:NN:0x on backend links;
# 01 = the lb end, 02 = the other end), so test programs can carry them as constants.

HERE=${HERE:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
STATE=${STATE:?where pid files, generated configurations and built tools go}
NB=${NB:-3}                             # number of backends
PFX=lbp                                 # namespace prefix: everything of ours is named with it
CLIENT=$PFX-client LB=$PFX-lb
VIP=10.200.0.1 CLIENT_IP=10.200.0.2
MANY_SRC=10.200.0.101 MANY_N=16         # more client addresses, for the many-clients workload
BE_HTTP=8080 BE_HTTPS=8443              # what the backends listen on (as an Istio ingress gateway does)
BULK=5201                               # iperf3: VIP:5201 goes to backend 1 alone (see README)
BIG_MB=${BIG_MB:-64}

lb_link_ip()  { echo "10.200.1.$(( ($1 - 1) * 4 + 1 ))"; }
backend_ip()  { echo "10.200.1.$(( ($1 - 1) * 4 + 2 ))"; }
lb_link_mac() { printf '02:00:00:01:%02x:01' "$1"; }
backend_mac() { printf '02:00:00:01:%02x:02' "$1"; }
LC0_MAC=02:00:00:00:00:01 C0_MAC=02:00:00:00:00:02

# Enter a namespace without `ip netns exec`: that remounts /sys and hides /sys/fs/bpf.
in_ns() { local ns=$1; shift; nsenter --net="/run/netns/$ns" -- "$@"; }

die() { echo "peers: $*" >&2; exit 1; }

# ---- topology ------------------------------------------------------------------------------------
topo_up() {
  local i ns
  for ns in "$CLIENT" "$LB"; do ip netns add "$ns" || return 1; done
  ip link add c0 netns "$CLIENT" address "$C0_MAC" type veth peer name lc0 netns "$LB" address "$LC0_MAC"
  ip -n "$CLIENT" addr add "$CLIENT_IP/24" dev c0
  for ((i = 0; i < MANY_N; i++)); do ip -n "$CLIENT" addr add "${MANY_SRC%.*}.$((${MANY_SRC##*.} + i))/32" dev c0; done
  ip -n "$LB" addr add "$VIP/24" dev lc0
  for ((i = 1; i <= NB; i++)); do
    ns=$PFX-b$i
    ip netns add "$ns" || return 1
    ip link add "lb$i" netns "$LB" address "$(lb_link_mac $i)" type veth \
       peer name e0 netns "$ns" address "$(backend_mac $i)"
    ip -n "$LB" addr add "$(lb_link_ip $i)/30" dev "lb$i"
    ip -n "$ns" addr add "$(backend_ip $i)/30" dev e0
  done
  for ns in $(topo_ns); do
    in_ns "$ns" sysctl -qw \
      net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 \
      net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
      net.ipv4.ip_local_port_range="1024 65535" \
      net.ipv4.ip_local_reserved_ports="$BULK,8001,$BE_HTTP,$BE_HTTPS" \
      net.ipv4.tcp_tw_reuse=1 net.ipv4.tcp_max_syn_backlog=8192 net.core.somaxconn=8192
    ip -n "$ns" link set lo up
  done
  in_ns "$LB" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0
  ip -n "$CLIENT" link set c0 up; ip -n "$LB" link set lc0 up
  for ((i = 1; i <= NB; i++)); do
    ip -n "$LB" link set "lb$i" up; ip -n "$PFX-b$i" link set e0 up
    ip -n "$PFX-b$i" route add default via "$(lb_link_ip $i)"
    # permanent neighbours, so an XDP/TC subject's bpf_fib_lookup() never meets an empty entry
    ip -n "$LB" neigh replace "$(backend_ip $i)" lladdr "$(backend_mac $i)" dev "lb$i" nud permanent
    ip -n "$PFX-b$i" neigh replace "$(lb_link_ip $i)" lladdr "$(lb_link_mac $i)" dev e0 nud permanent
  done
  ip -n "$LB" neigh replace "$CLIENT_IP" lladdr "$C0_MAC" dev lc0 nud permanent
  for ((i = 0; i < MANY_N; i++)); do ip -n "$LB" neigh replace "${MANY_SRC%.*}.$((${MANY_SRC##*.} + i))" lladdr "$C0_MAC" dev lc0 nud permanent; done
  ip -n "$CLIENT" neigh replace "$VIP" lladdr "$LC0_MAC" dev c0 nud permanent
  ip -n "$CLIENT" route add 10.200.1.0/24 via "$VIP"
}

topo_ns() { local i; echo "$CLIENT" "$LB"; for ((i = 1; i <= NB; i++)); do echo "$PFX-b$i"; done; }

# Ends whatever still runs inside our namespaces (found by namespace, never by name) and deletes them.
topo_down() {
  local ns pids
  for ns in $(ip netns list | awk -v p="^$PFX-" '$1 ~ p {print $1}'); do
    pids=$(ip netns pids "$ns" 2>/dev/null)
    [ -n "$pids" ] && kill $pids 2>/dev/null
  done
  sleep 0.2
  for ns in $(ip netns list | awk -v p="^$PFX-" '$1 ~ p {print $1}'); do
    pids=$(ip netns pids "$ns" 2>/dev/null)
    [ -n "$pids" ] && kill -9 $pids 2>/dev/null
    ip netns del "$ns"
  done
  return 0
}

# ---- processes -----------------------------------------------------------------------------------
# spawn NAME NS CMD...: run CMD in NS in the background, remember its pid in $STATE/NAME.pids
spawn() {
  local name=$1 ns=$2; shift 2
  nsenter --net="/run/netns/$ns" -- "$@" >>"$STATE/$name.log" 2>&1 </dev/null &
  echo $! >>"$STATE/$name.pids"
}
pids_of() { [ -f "$STATE/$1.pids" ] && cat "$STATE/$1.pids"; return 0; }
# reap NAME: TERM, wait up to 3 s, KILL
reap() {
  local p n
  for p in $(pids_of "$1"); do kill -TERM "$p" 2>/dev/null; done
  for p in $(pids_of "$1"); do
    for ((n = 0; n < 60; n++)); do kill -0 "$p" 2>/dev/null || break; sleep 0.05; done
    kill -KILL "$p" 2>/dev/null
  done
  rm -f "$STATE/$1.pids"
}
# wait_tcp NS IP PORT: until something accepts there (5 s)
wait_tcp() {
  local n
  for ((n = 0; n < 100; n++)); do
    nsenter --net="/run/netns/$1" -- timeout 1 bash -c "exec 3<>/dev/tcp/$2/$3" 2>/dev/null && return 0
    sleep 0.05
  done
  return 1
}

# ---- backends ------------------------------------------------------------------------------------
backends_up() {
  local i d
  mkdir -p "$STATE/www"
  [ -f "$STATE/www/big" ] || head -c "${BIG_MB}M" /dev/zero >"$STATE/www/big"
  for ((i = 1; i <= NB; i++)); do
    d=$STATE/backend$i; mkdir -p "$d"
    cat >"$d/nginx.conf" <<CONF
worker_processes 1;
daemon off;
pid $d/pid;
error_log $d/error.log warn;
events { worker_connections $(ulimit -Hn); }
http {
  access_log off;
  sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 600s; client_header_timeout 600s; keepalive_requests 1000000000;
  client_body_temp_path $d/b; proxy_temp_path $d/p; fastcgi_temp_path $d/f; uwsgi_temp_path $d/u; scgi_temp_path $d/s;
  server {
    listen $BE_HTTP backlog=8192; listen $BE_HTTPS backlog=8192;
    location = /    { default_type text/plain; return 200 "ok from backend $i\n"; }
    location = /big { root $STATE/www; }
  }
}
CONF
    spawn backends "$PFX-b$i" nginx -p "$d" -c "$d/nginx.conf"
    spawn backends "$PFX-b$i" iperf3 -s -p "$BULK"
  done
  for ((i = 1; i <= NB; i++)); do
    wait_tcp "$CLIENT" "$(backend_ip $i)" "$BE_HTTP" || die "backend $i does not answer"
  done
}

# ---- build ---------------------------------------------------------------------------------------
build_tools() {
  mkdir -p "$STATE"
  local t
  for t in connbench; do
    [ -f "$HERE/tools/$t.c" ] || continue
    if [ ! -x "$STATE/$t" ] || [ "$HERE/tools/$t.c" -nt "$STATE/$t" ]; then
      cc -O2 -Wall -o "$STATE/$t" "$HERE/tools/$t.c" -lpthread || die "cannot build $t"
    fi
  done
}

# What a subject's programs are attached to, and `ethtool -K` for the far ends: the client's and the backends'.
lb_ifs() { local i; echo lc0; for ((i = 1; i <= NB; i++)); do echo lb$i; done; }
peers_ethtool() {
  local i; in_ns $CLIENT ethtool -K c0 "$@" >/dev/null
  for ((i = 1; i <= NB; i++)); do in_ns $PFX-b$i ethtool -K e0 "$@" >/dev/null; done; }
