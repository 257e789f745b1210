S_DESC="Headgate, xdp rung, round_robin"
S_KIND=kernel
RUNG=xdp
. "$HERE/subjects/headgate.inc"
