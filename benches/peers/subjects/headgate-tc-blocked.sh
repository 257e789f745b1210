S_DESC="Headgate, tc rung, round_robin, access log to a pipe that nobody reads"
S_KIND=kernel
RUNG=tc
LOG=pipe
. "$HERE/subjects/headgate.inc"
