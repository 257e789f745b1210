#!/usr/bin/env python3
"""Runs the interleaved measurement rounds over the subjects; run.sh builds the namespaces around it.

Writes one JSON object a cell to results/raw.jsonl (appending as it goes) and calls report.py's tables
 no module outside the standard library.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time

import quiet

HERE = os.path.dirname(os.path.abspath(__file__))
STATE = os.environ["STATE"]
CLIENT = "lbp-client"
HZ = os.sysconf("SC_CLK_TCK")


def sh(cmd, timeout=60, **kw):
    return subprocess.run(cmd, capture_output=True, text=True, timeout=timeout, **kw)


def client(cmd, timeout=60, **kw):
    """Run a command in the client namespace."""
    return sh(["nsenter", f"--net=/run/netns/{CLIENT}", "--"] + cmd, timeout=timeout, **kw)


def ctl(name, verb, *args):
    # No pipes here: what a subject starts would keep them open.
    with open(f"{STATE}/ctl.out", "w+") as out:
        r = subprocess.run([f"{HERE}/subjectctl", name, verb, *args], stdout=out, stderr=out,
                           stdin=subprocess.DEVNULL, timeout=60)
        out.seek(0)
        text = out.read()
    if r.returncode:
        raise RuntimeError(f"{name} {verb}: {text.strip()}")
    return text


def fresh():
    """New namespaces and backends: no TIME_WAIT socket, conntrack entry or port left from another subject.
    (They matter: a SYN that a NAT sends from a port the backend still holds in TIME_WAIT may be refused.)"""
    log = open(f"{STATE}/topo.log", "w")
    subprocess.run(["bash", "-c", f". {HERE}/lib.sh; topo_down; rm -f $STATE/*.pids; topo_up && backends_up"], check=True,
                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60)


# ---- machine and process accounting ---------------------------------------------------------------
def cpu_now():
    """(busy seconds, softirq seconds, steal seconds) of the whole machine since boot."""
    f = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = f
    return (user + nice + system + irq + softirq) / HZ, softirq / HZ, steal / HZ


def tree(roots):
    """The given pids and all their descendants that still live."""
    kids = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                s = open(f"/proc/{d}/stat").read()
            except OSError:
                continue
            kids.setdefault(int(s[s.rindex(")") + 2:].split()[1]), []).append(int(d))
    out, todo = [], list(roots)
    while todo:
        p = todo.pop()
        if os.path.exists(f"/proc/{p}"):
            out.append(p)
            todo += kids.get(p, [])
    return out


def proc_cpu(pids):
    t = 0
    for p in pids:
        try:
            s = open(f"/proc/{p}/stat").read()
        except OSError:
            continue
        f = s[s.rindex(")") + 2:].split()
        t += int(f[11]) + int(f[12])
    return t / HZ


def proc_mem(pids):
    """(RSS, PSS) in KiB, summed."""
    rss = pss = 0
    for p in pids:
        try:
            for line in open(f"/proc/{p}/smaps_rollup"):
                if line.startswith("Rss:"):
                    rss += int(line.split()[1])
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1])
        except OSError:
            pass
    return rss, pss


def meminfo():
    return {k: int(v.split()[0]) for k, v in (l.split(":") for l in open("/proc/meminfo"))}


class Meter:
    """CPU spent between start() and stop(): whole machine, its softirq share, steal, the LB's own tree."""

    def __init__(self, roots):
        self.roots = roots

    def start(self):
        self.pids = tree(self.roots)
        self.p0, self.c0, self.t0 = proc_cpu(self.pids), cpu_now(), time.monotonic()

    def stop(self):
        c1, t1 = cpu_now(), time.monotonic()
        return {"wall": t1 - self.t0, "busy": c1[0] - self.c0[0], "softirq": c1[1] - self.c0[1],
                "steal": c1[2] - self.c0[2], "lbproc": proc_cpu(self.pids) - self.p0}


# ---- workloads ------------------------------------------------------------------------------------
UNIT = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def wrk(url, conns, threads, secs, meter):
    meter.start()
    r = client(["wrk", "-c", str(conns), "-t", str(threads), "-d", f"{secs}s", "--latency", url], timeout=secs + 30)
    m = meter.stop()
    out = r.stdout
    lat = {p: float(v) * UNIT[u] for p, v, u in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)\s*$", out, re.M)}
    q = re.search(r"(\d+) requests in ([\d.]+)(m?s)", out)
    if not q:
        raise RuntimeError("wrk: " + out + r.stderr)
    n, t = int(q[1]), float(q[2]) / (1000 if q[3] == "ms" else 1)
    err = sum(int(x) for x in re.findall(r"(?:connect|read|write|timeout) (\d+)", out))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return {"rps": n / t, "reqs": n, "p50_us": lat.get("50"), "p99_us": lat.get("99"),
            "errors": err + (int(bad[1]) if bad else 0), "cpu": m,
            "cpu_s_per_1m": m["busy"] / n * 1e6, "lbproc_s_per_1m": m["lbproc"] / n * 1e6}


def rate(ip, port, secs, meter, conc=64, threads=2, many=""):
    meter.start()
    r = client([f"{STATE}/connbench", "rate", ip, port, str(conc), str(secs), str(threads)] + many.split(), timeout=secs + 30)
    m = meter.stop()
    if r.returncode:
        raise RuntimeError("connbench rate: " + r.stderr)
    d = json.loads(r.stdout.strip().splitlines()[-1])
    d["cpu"] = m
    d["cpu_s_per_1m"] = m["busy"] / max(1, d["conns"]) * 1e6
    d["errors"] = sum(v for k, v in d.items() if k.startswith("err_"))
    return d


def churned(name, url, secs, meter):
    """Keep-alive requests while the last backend goes and comes back every half second."""
    over = threading.Event()

    def churn():
        backends = 3
        while not over.wait(0.5):
            backends = 5 - backends
            ctl(name, "churn", str(backends))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        return wrk(url, 64, 2, secs, meter)
    finally:
        over.set()
        thread.join()
        ctl(name, "churn", "3")


def iperf(ip, port, secs, streams, meter):
    for attempt in range(5):          # "server is busy" until the last test's sockets are gone
        meter.start()
        r = client(["iperf3", "-c", ip, "-p", port, "-t", str(secs), "-P", str(streams), "-J"], timeout=secs + 30)
        m = meter.stop()
        d = json.loads(r.stdout)
        if "error" not in d:
            break
        time.sleep(0.3)
    else:
        return {"error": d["error"]}
    s = d["end"]["sum_received"]
    gb = s["bytes"] / 1e9
    return {"gbps": s["bits_per_second"] / 1e9, "gb": gb, "retr": d["end"]["sum_sent"].get("retransmits"),
            "cpu": m, "cpu_s_per_gb": m["busy"] / gb if gb else None}


def download(ip, port, secs, conns, meter):
    meter.start()
    r = client([f"{STATE}/connbench", "get", ip, port, str(conns), str(secs), "/big"], timeout=secs + 30)
    m = meter.stop()
    d = json.loads(r.stdout.strip().splitlines()[-1])
    d["cpu"] = m
    d["cpu_s_per_gb"] = m["busy"] / (d["bytes"] / 1e9) if d["bytes"] else None
    return d


def slab(name):
    for line in open("/proc/slabinfo"):
        f = line.split()
        if f[0] == name:
            return int(f[1]), int(f[3])
    return 0, 0


def idle(name, info, count):
    """Memory of COUNT idle connections, opened at 2,500/s: the LB's own RSS/PSS, and the machine's kernel slab
    + anonymous memory.  Then a burst: COUNT connections opened at once, and how many of them answer."""
    ip, port = info["http"].split()
    roots = [int(x) for x in ctl(name, "pids").split()]
    wrk(f"http://{ip}:{port}/", 16, 2, 1, Meter(roots))          # touch the code paths first
    time.sleep(0.5)

    def snap():
        m = meminfo()
        r = sh(["nsenter", "--net=/run/netns/lbp-lb", "--", "cat", "/proc/net/nf_conntrack"])
        rss, pss = proc_mem(tree(roots))
        return {"rss": rss, "pss": pss, "slab": m["Slab"], "used": m["Slab"] + m["AnonPages"] + m["PageTables"],
                "conntrack": r.stdout.count("ESTABLISHED")}
    a = snap()
    p = subprocess.Popen(["nsenter", f"--net=/run/netns/{CLIENT}", "--", f"{STATE}/connbench", "idle", ip, port, str(count), "2500"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    p.stdout.readline()                                            # READY
    time.sleep(0.7)
    b = snap()
    out, _ = p.communicate("go\n", timeout=60)
    d = json.loads(out.strip().splitlines()[-1])
    time.sleep(0.5)
    r = client([f"{STATE}/connbench", "idle", ip, port, str(count), "0"], timeout=90, input="go\n")
    d["burst"] = json.loads(r.stdout.strip().splitlines()[-1])
    n = max(1, d["opened"])
    d.update({"base_rss_kib": a["rss"], "base_pss_kib": a["pss"], "rss_kib": b["rss"], "pss_kib": b["pss"],
              "lb_rss_b_per_conn": (b["rss"] - a["rss"]) * 1024 / n, "lb_pss_b_per_conn": (b["pss"] - a["pss"]) * 1024 / n,
              "slab_b_per_conn": (b["slab"] - a["slab"]) * 1024 / n, "machine_b_per_conn": (b["used"] - a["used"]) * 1024 / n,
              "conntrack": b["conntrack"] - a["conntrack"], "conntrack_objsize": slab("nf_conntrack")[1]})
    return d


def idle_cell(name, count):
    fresh()
    info = json.loads(ctl(name, "info"))
    ctl(name, "start")
    try:
        return idle(name, info, count)
    finally:
        ctl(name, "stop")


def cell(name, rnd, t, log):
    fresh()
    info = json.loads(ctl(name, "info"))
    ip, port = info["http"].split()
    ctl(name, "start")
    try:
        roots = [int(x) for x in ctl(name, "pids").split()]
        m = Meter(roots)
        url = f"http://{ip}:{port}/"
        if t["warm"]:
            wrk(url, 64, 2, t["warm"], m)                  # warm-up, thrown away
        res = {"subject": name, "kind": info["kind"], "round": rnd, "desc": info["desc"]}
        if os.environ.get("ONLY") == "conn":               # new connections alone
            res["conn"] = quiet.clean(rate, ip, port, t["conn"], m)
            print(f"round {rnd} {name:22s} {res['conn']['cps']:7.0f} conn/s  err {res['conn']['errors']}", file=log, flush=True)
            return res
        res["ka"] = quiet.clean(wrk, url, 64, 2, t["ka"], m)
        res["c1"] = quiet.clean(wrk, url, 1, 1, t["c1"], m)
        res["conn"] = quiet.clean(rate, ip, port, t["conn"], m)
        if info["many"]:
            res["connm"] = quiet.clean(rate, ip, port, t["connm"], m, many=info["many"])
        if info["bulk"]:
            bip, bport = info["bulk"].split()
            res["up1"] = quiet.clean(iperf, bip, bport, t["bulk"], 1, m)
            res["up4"] = quiet.clean(iperf, bip, bport, t["bulk"], 4, m)
        res["down4"] = quiet.clean(download, ip, port, t["bulk"], 4, m)
        if info["churn"]:
            res["churn"] = quiet.clean(churned, name, url, t["ka"], m)
        rss, pss = proc_mem(tree(roots))
        res["rss_kib"], res["pss_kib"], res["procs"] = rss, pss, len(tree(roots))
    finally:
        ctl(name, "stop")
    line = (f"round {rnd} {name:15s} {res['ka']['rps']:8.0f} req/s  p50 {res['ka']['p50_us']:6.0f} p99 {res['ka']['p99_us']:7.0f} us"
            f"  c1 {res['c1']['p50_us']:5.0f} us  {res['conn']['cps']:7.0f}/{res.get('connm', {}).get('cps', 0):.0f} conn/s"
            f"  up {res.get('up1', {}).get('gbps', 0):5.2f}/{res.get('up4', {}).get('gbps', 0):5.2f}  down {res['down4']['gbps']:5.2f} Gb/s"
            f"  err {res['ka']['errors']}/{res['conn']['errors']}/{res.get('connm', {}).get('errors', 0)}")
    print(line, file=log, flush=True)
    return res


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("subjects", nargs="+")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--quick", action="store_true")
    ap.add_argument("--idle", type=int, default=None, help="idle connections for the memory test, 0 = skip")
    ap.add_argument("--out", required=True)
    a = ap.parse_args()
    t = dict(warm=1, ka=3, c1=1, conn=1.5, connm=1.5, bulk=1.5) if not a.quick else dict(warm=1, ka=2, c1=1, conn=0.5, connm=0.5, bulk=1)
    n_idle = a.idle if a.idle is not None else (1000 if a.quick else 2000)
    os.makedirs(a.out, exist_ok=True)
    raw = f"{a.out}/raw.jsonl"
    t0 = time.monotonic()
    with open(raw, "w") as f:
        f.write(json.dumps({"meta": {"when": time.strftime("%Y-%m-%dT%H:%M:%S"), "kernel": os.uname().release, "cpus": os.cpu_count(),
                                     "times": t, "rounds": a.rounds, "idle": n_idle, "quick": a.quick}}) + "\n")
        # memory first: later there are TIME_WAIT sockets, freed lazily, in the kernel's slabs
        for s in a.subjects if n_idle else []:
            try:
                d = quiet.clean(idle_cell, s, n_idle)
                f.write(json.dumps({"subject": s, "idle": d}) + "\n")
                print(f"idle {s:15s} {d['lb_rss_b_per_conn']:8.0f} B RSS/conn  {d['machine_b_per_conn']:8.0f} B machine/conn"
                      f"  answered {d['answered']}/{n_idle}, in a burst {d['burst']['answered']}/{n_idle}", file=sys.stderr, flush=True)
            except Exception as e:
                print(f"idle {s}: FAILED: {e}", file=sys.stderr, flush=True)
        for rnd in range(1, a.rounds + 1):
            for s in a.subjects:                            # interleaved: A B C, A B C, ...
                try:
                    f.write(json.dumps(cell(s, rnd, t, sys.stderr)) + "\n")
                except Exception as e:                      # a subject that fails must not end the run
                    print(f"round {rnd} {s}: FAILED: {e}", file=sys.stderr, flush=True)
                    f.write(json.dumps({"subject": s, "round": rnd, "failed": str(e)}) + "\n")
                f.flush()
        f.write(json.dumps({"end": {"secs": time.monotonic() - t0, "redone": quiet.redone, "waited": quiet.waited, "worst_foreign_kept": quiet.worst_kept}}) + "\n")
    print(f"total {time.monotonic() - t0:.0f} s; {quiet.redone} measurements disturbed by other processes and run again, "
          f"{quiet.waited:.0f} s spent waiting for quiet, worst foreign share kept {quiet.worst_kept:.1%}", file=sys.stderr)


if __name__ == "__main__":
    main()
