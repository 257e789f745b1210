S_DESC="Headgate, tc rung, round_robin, access log to a file"
S_KIND=kernel
RUNG=tc
LOG=file
. "$HERE/subjects/headgate.inc"
