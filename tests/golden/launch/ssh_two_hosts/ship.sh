rsync -a --delete --mkpath '--filter=:- .gitignore' --exclude=/.git -e 'ssh -T -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3' ./ one:vitforge/ti/
rsync -a --delete --mkpath '--filter=:- .gitignore' --exclude=/.git -e 'ssh -T -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3' ./ me@two:vitforge/ti/
