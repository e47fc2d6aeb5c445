#!/bin/sh
cd "$(dirname "$0")" || exit
{ cat process_0.json; while sleep 5; do echo; done; } | ssh -T -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 one '/opt/vitforge/bin/python vitforge/ti/tools/launchers/attended.py' &
{ cat process_1.json; while sleep 5; do echo; done; } | ssh -T -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 me@two '/opt/vitforge/bin/python vitforge/ti/tools/launchers/attended.py' &
wait
