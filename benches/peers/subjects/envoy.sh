S_DESC="Envoy tcp_proxy, STRICT_DNS/STATIC cluster, round_robin, access log to /dev/null, default --concurrency"
# The three backends are IP literals; ENVOY_CLUSTER=STRICT_DNS resolves them through the DNS cluster type.
subject_start() {
  local bin i cfg=$STATE/envoy.yaml type=${ENVOY_CLUSTER:-STRICT_DNS}
  bin=${ENVOY_BIN:?the Envoy program}
  eps() { # eps PORT COUNT
    local i; for ((i = 1; i <= $2; i++)); do
      echo "          - endpoint: { address: { socket_address: { address: $(backend_ip $i), port_value: $1 } } }"
    done; }
  listener() { cat <<Y
  - name: $1
    address: { socket_address: { address: 0.0.0.0, port_value: $2 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: $1
          cluster: $1
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/null
Y
  }
  cluster() { cat <<Y
  - name: $1
    connect_timeout: ${ENVOY_CONNECT_TIMEOUT:-0.25s}
    type: $type
    lb_policy: ROUND_ROBIN
    # Envoy's default circuit breaker closes connection 1,025 of a cluster; raised so that the 5,000
    # idle connections can be measured.
    ${ENVOY_BREAKERS-circuit_breakers: { thresholds: [ { max_connections: 1000000, max_pending_requests: 1000000 \} ] \}}
    load_assignment:
      cluster_name: $1
      endpoints:
      - lb_endpoints:
$(eps $2 $3)
Y
  }
  {
    echo "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 8001 } } }"
    echo "static_resources:"; echo "  listeners:"
    listener ingress_http 80; listener ingress_https 443; listener bulk $BULK
    echo "  clusters:"
    cluster ingress_http $BE_HTTP $NB; cluster ingress_https $BE_HTTPS $NB; cluster bulk $BULK 1
  } >"$cfg"
  ulimit -n "$(ulimit -Hn)"
  spawn envoy "$LB" "$bin" -c "$cfg" --disable-hot-restart -l warning
}
