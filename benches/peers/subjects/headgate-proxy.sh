S_DESC="Headgate, proxy rung, round_robin"
S_KIND=proxy
RUNG=proxy
. "$HERE/subjects/headgate.inc"
