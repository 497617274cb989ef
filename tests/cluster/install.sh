#!/usr/bin/env bash
# The Debian packages that tests/cluster needs. Installs what is missing, which takes root; starts none of the services.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=()
while read -r program package; do
  command -v "$program" >/dev/null || missing+=("$package")
done <<'END'
unshare util-linux
setpriv util-linux
ip iproute2
ssh openssh-client
sshd openssh-server
pdsh pdsh
munged munge
slurmctld slurmctld
slurmd slurmd
sbatch slurm-client
END
if [ ! -e /usr/lib/x86_64-linux-gnu/slurm-wlm/auth_munge.so ] && ! ls /usr/lib/*/slurm-wlm/auth_munge.so >/dev/null 2>&1; then
  missing+=(slurm-wlm-basic-plugins)
fi
[ ${#missing[@]} -gt 0 ] || exit 0
echo "test-cluster: not installed: ${missing[*]}"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "test-cluster: root and apt-get are needed to install them; the tests that need them will be skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # runlevel 1: no service is started
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
