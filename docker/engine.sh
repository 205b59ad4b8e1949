#!/usr/bin/env bash
# A Docker engine of its own, for machines that have none: the tests start it, and it ends without a trace.
#
#   docker/engine.sh start DIR    install what is missing (as root, on Debian), start dockerd below DIR, wait for it
#   docker/engine.sh env DIR      print the variables with which `docker` speaks to it
#   docker/engine.sh base DIR [IMAGE]...
#                                 make stand-ins of base images, for machines that reach no container registry
#   docker/engine.sh stop DIR     end its containers and itself; remove DIR, its bridges and its firewall rules
#
# Status 69: it cannot run on this machine, and the last line on stderr says why.
set -euo pipefail

readonly UNAVAILABLE=69
readonly PLUGINS_SUITE=trixie # bookworm has neither compose v2 nor buildx
readonly BASES=(python:3.11-slim-bookworm debian:trixie-slim)
readonly BRIDGE=tilecov0 BRIDGE_ADDRESS=172.31.240.1/24
readonly NETWORKS=172.31.241.0/24 # of compose projects
readonly ADDRESSES=172.31.240.0/23 # of all containers
# What lets containers reach what this machine reaches: it names their addresses alone, comes before what others forbid,
# and is taken away word by word.
readonly RULES=(
    "filter FORWARD --source $ADDRESSES --jump ACCEPT"
    "filter FORWARD --destination $ADDRESSES --jump ACCEPT"
    "nat POSTROUTING --source $ADDRESSES ! --destination $ADDRESSES --jump MASQUERADE"
)
readonly STATE=/run/tilecov-engine # how the machine was before: the next one restores it where this one is killed
readonly CAS=/etc/ssl/certs/ca-certificates.crt

cannot() {
    echo "no Docker engine on this machine: $*" >&2
    exit "$UNAVAILABLE"
}

has() { command -v "$1" >/dev/null; }

# apt's last lines become the reason where it fails.
quietly() {
    "$@" >"$dir/install.log" 2>&1 || cannot "'$*' failed: $(tail -n 3 "$dir/install.log" | tr '\n' ' ')"
}

install_engine() {
    [[ $(id -u) == 0 ]] || cannot "it takes root, and this is user $(id -u)"
    [[ $(uname -s) == Linux ]] || cannot "it takes Linux, and this is $(uname -s)"
    local missing=()
    has dockerd || missing+=(docker.io)
    has iptables || missing+=(iptables)
    has ip || missing+=(iproute2)
    has mmdebstrap || missing+=(mmdebstrap)
    if ((${#missing[@]})); then
        has apt-get || cannot "${missing[*]} missing, and there is no apt-get"
        quietly apt-get update
        # Packages start their services on installation where nothing forbids it; this engine is started by hand.
        quietly env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${missing[@]}"
    fi
    install_plugins
}

# Debian's own mirror as apt on this machine is told it; $(REPO_URI) is apt's word, not the shell's.
# shellcheck disable=SC2016
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1
}

install_plugins() {
    local plugins="$dir/config/cli-plugins" apt="$dir/apt"
    mkdir -p "$plugins"
    docker --config "$dir/config" compose version >/dev/null 2>&1 &&
        docker --config "$dir/config" buildx version >/dev/null 2>&1 && return
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/debs"
    chmod 755 "$dir"
    [[ -n $(mirror) ]] || quietly apt-get update
    [[ -n $(mirror) ]] || cannot "apt has no Debian mirror to take docker-compose and docker-buildx from"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $PLUGINS_SUITE main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt" -o APT::Sandbox::User=root)
    quietly apt-get "${options[@]}" update
    (cd "$apt/debs" && quietly apt-get "${options[@]}" download docker-compose docker-buildx)
    local deb
    for deb in "$apt"/debs/*.deb; do
        dpkg -x "$deb" "$apt/tree"
    done
    find "$apt/tree" -path '*/cli-plugins/*' -type f -exec cp {} "$plugins" \;
    rm -rf "$apt"
}

start() {
    mkdir -p "$dir"
    install_engine
    if pgrep -x dockerd >/dev/null; then
        cannot "another one runs as process $(pgrep -x dockerd | head -n 1), and this user's docker does not reach it"
    fi
    clean_network # of one that was killed
    make_network
    # The firewall is make_network's: dockerd would forbid all other forwarding, and leave its own chains behind.
    setsid dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" -H "unix://$dir/docker.sock" \
        --bridge "$BRIDGE" --default-address-pool "base=$NETWORKS,size=27" --iptables=false --ip-forward=false \
        >"$dir/dockerd.log" 2>&1 </dev/null &
    local process=$! tries
    for ((tries = 0; tries < 300; tries++)); do
        docker -H "unix://$dir/docker.sock" version >/dev/null 2>&1 && return
        kill -0 "$process" 2>/dev/null || break
        sleep 0.2
    done
    fail "dockerd does not come up: $(grep -v 'level=info' "$dir/dockerd.log" | tail -n 2 | tr '\n' ' ')"
}

# Leaves nothing behind.
fail() {
    stop
    cannot "$@"
}

variables() {
    echo "export DOCKER_HOST=unix://$dir/docker.sock DOCKER_CONFIG=$dir/config"
}

# URLs without the name and password that they may hold: what lies in a layer, everybody reads.
without_passwords() { sed -E 's|//[^/@]*@|//|g'; }

# What the machine's own apt and pip are told (certificates, mirrors, dates) holds in the images too.
machine_settings() {
    local root=$1
    mkdir -p "$root/etc/ssl/certs" "$root/etc/apt/apt.conf.d"
    [[ ! -e $CAS ]] || cp "$CAS" "$root$CAS"
    apt-config dump | grep -E '^Acquire::(Check-|http::Proxy|https::Proxy)' | without_passwords \
        >"$root/etc/apt/apt.conf.d/99machine" || true
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    {
        echo "[global]"
        [[ ! -e $CAS ]] || echo "cert = $CAS"
        local index
        if index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null)} && [[ -n $index ]]; then
            without_passwords <<<"index-url = $index"
        fi
    } >"$root/etc/pip.conf"
}

import_base() {
    local name=$1 suite packages="" root="$dir/root"
    case $name in
    python:3.11-slim-bookworm) suite=bookworm packages="python3.11 python3.11-venv python3-pip" ;;
    debian:trixie-slim) suite=trixie ;;
    *) echo "$name: there are stand-ins of ${BASES[*]}" >&2 && exit 2 ;;
    esac
    docker image inspect "$name" >/dev/null 2>&1 && return
    # As small as the images it stands for: merged directories from the start (usrmerge would bring perl), no manuals.
    quietly mmdebstrap --quiet --variant=minbase --include="usr-is-merged ca-certificates $packages" \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --aptopt='Acquire::Check-Date "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$root" "$(mirror)"
    machine_settings "$root"
    tar -C "$root" --numeric-owner -c . | docker import -c 'CMD ["bash"]' - "$name" >/dev/null
    rm -rf "$root"
}

base() {
    local image
    eval "$(variables)"
    for image in "$@"; do import_base "$image"; done
}

# `rule ACTION RULE`: of RULES, one line for iptables.
rule() {
    local words
    read -ra words <<<"$2"
    iptables --wait --table "${words[0]}" "$1" "${words[@]:1}"
}

make_network() {
    mkdir -p "$STATE"
    echo "$dir" >"$STATE/dir"
    [[ ! -e /run/docker ]] || touch "$STATE/run"
    sysctl -n net.ipv4.ip_forward >"$STATE/ip_forward"
    ip -o link show type bridge | grep -oE 'br-[0-9a-f]{12}' >"$STATE/bridges" || true
    ip link add "$BRIDGE" type bridge 2>"$dir/bridge.log" || fail "the kernel makes no bridge: $(<"$dir/bridge.log")"
    ip address add "$BRIDGE_ADDRESS" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    sysctl -q -w net.ipv4.ip_forward=1
    local each
    for each in "${RULES[@]}"; do
        rule --insert "$each" 2>"$dir/rules.log" || fail "iptables takes no rule: $(tr '\n' ' ' <"$dir/rules.log")"
    done
}

# Takes away what make_network made, and the bridges of networks, which dockerd leaves behind when it ends.
clean_network() {
    [[ -e $STATE/dir ]] || return 0
    local each link
    for each in "${RULES[@]}"; do
        while rule --delete "$each" 2>/dev/null; do :; done
    done
    for link in $(ip -o link show type bridge | grep -oE 'br-[0-9a-f]{12}' | grep -vxFf "$STATE/bridges"); do
        [[ $(ip -o -4 address show "$link") != *" ${NETWORKS%.*}."* ]] || ip link delete "$link"
    done
    [[ ! -e /sys/class/net/$BRIDGE ]] || ip link delete "$BRIDGE"
    sysctl -q -w "net.ipv4.ip_forward=$(<"$STATE/ip_forward")"
    [[ -e $STATE/run ]] || rmdir --ignore-fail-on-non-empty /run/docker/plugins /run/docker 2>/dev/null || true
    rm -r "$STATE"
}

finish() {
    kill "$1"
    while kill -0 "$1" 2>/dev/null; do sleep 0.1; done
}

stop() {
    [[ -d $dir ]] || return 0
    eval "$(variables)"
    local process found
    if process=$(cat "$dir/pid" 2>/dev/null) && kill -0 "$process" 2>/dev/null; then
        found=$(docker ps --all --quiet 2>/dev/null) || true
        # shellcheck disable=SC2086 # one word a container
        [[ -z $found ]] || docker rm --force --volumes $found >/dev/null || true
        finish "$process"
    fi
    # It is dockerd's own, and outlives one that was killed.
    if process=$(cat "$dir/exec/containerd/containerd.pid" 2>/dev/null) && grep -qx containerd "/proc/$process/comm" 2>/dev/null; then
        finish "$process"
    fi
    awk -v below="$dir/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs --no-run-if-empty umount --lazy
    # Else it was never started, and the network is another engine's.
    [[ $(cat "$STATE/dir" 2>/dev/null) != "$dir" ]] || clean_network
    rm -rf "$dir"
}

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# Tests take functions of it.
[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0

[[ $# == 2 || ($# -gt 2 && $1 == base) ]] || usage
command=$1 dir=$(realpath -m "$2")
shift 2
case $command in
start) start ;;
env) variables ;;
base) if (($#)); then base "$@"; else base "${BASES[@]}"; fi ;;
stop) stop ;;
*) usage ;;
esac
