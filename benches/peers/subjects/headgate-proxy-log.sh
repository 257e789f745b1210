S_DESC="Headgate, proxy rung, round_robin, access log to a file"
S_KIND=proxy
RUNG=proxy
LOG=file
. "$HERE/subjects/headgate.inc"
