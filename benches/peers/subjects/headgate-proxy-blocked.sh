S_DESC="Headgate, proxy rung, round_robin, access log to a pipe that nobody reads"
S_KIND=proxy
RUNG=proxy
LOG=pipe
. "$HERE/subjects/headgate.inc"
