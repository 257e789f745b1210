S_DESC="Headgate, tc rung, round_robin"
S_KIND=kernel
RUNG=tc
. "$HERE/subjects/headgate.inc"
