"""docker/engine.sh leaves a machine as it was, and no password of it in an image."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from engine import SCRIPT, Engine

# A machine in a namespace of its own, with a firewall and bridges of somebody else's, and an engine that was killed.
STORY = """
set -euo pipefail
mount -t tmpfs tmpfs /run
ip link set lo up
sysctl -q -w net.ipv4.ip_forward=0
iptables -P FORWARD DROP
iptables -N DOCKER
iptables -A DOCKER -j RETURN
iptables -A FORWARD -i br-0123456789ab -j ACCEPT
iptables -t nat -A POSTROUTING -s 10.9.0.0/24 -j MASQUERADE
ip link add br-0123456789ab type bridge
ip address add 10.9.0.1/24 dev br-0123456789ab

state() {
    iptables-save | grep -v '^#' | sed 's/ \\[.*//'
    ip -o link show type bridge | cut -d : -f 2
    sysctl net.ipv4.ip_forward
    ls /run | grep -vx mount || true # umount's own
}
begin() {
    "$SCRIPT" start "$1"
    eval "$("$SCRIPT" env "$1")"
    docker network create first >/dev/null
    [[ $(ip -o link show type bridge | wc -l) == 3 && $(sysctl -n net.ipv4.ip_forward) == 1 ]]
    iptables -C FORWARD -s 172.31.240.0/23 -j ACCEPT
}
state >before
begin "$FOLDER/one"
iptables -A INPUT -i nowhere -j DROP # by somebody else, meanwhile
ip link add br-ba9876543210 type bridge
"$SCRIPT" stop "$FOLDER/one"
iptables -D INPUT -i nowhere -j DROP
ip link delete br-ba9876543210
state >after

begin "$FOLDER/killed"
kill -KILL "$(<"$FOLDER/killed/pid")"
while pgrep -x dockerd; do sleep 0.1; done
begin "$FOLDER/two"
"$SCRIPT" stop "$FOLDER/killed"
[[ $(pgrep -c -x containerd) == 1 ]]
docker network ls --quiet >/dev/null # the other engine goes on
"$SCRIPT" stop "$FOLDER/two"
[[ -z $(pgrep -x dockerd; pgrep -x containerd) ]]
state >last
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to make a namespace")
def test_an_engine_takes_away_what_it_made_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    """The session's engine has installed what is needed; its plug-ins serve these, which reach no mirror."""
    missing = [tool for tool in ("dockerd", "iptables", "ip", "mmdebstrap", "unshare") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing")
    folder = Path("/tmp", f"tilecov-{os.getpid()}")  # the paths of sockets are limited
    plugins = Path(engine.environment.get("DOCKER_CONFIG", Path.home() / ".docker"), "cli-plugins")
    try:
        for name in ("one", "killed", "two"):
            if plugins.exists():
                shutil.copytree(plugins, folder / name / "config" / "cli-plugins")
        own = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
        environment = {**os.environ, "SCRIPT": str(SCRIPT), "FOLDER": str(folder)}
        environment.pop("DOCKER_HOST", None)
        done = subprocess.run(
            [*own, "bash", "-c", STORY], cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        before = (tmp_path / "before").read_text()
        assert ":FORWARD DROP" in before
        assert (tmp_path / "after").read_text() == before
        assert (tmp_path / "last").read_text() == before
        assert not (folder / "one").exists()
        assert not (folder / "two").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(shutil.which("apt-config") is None, reason="of Debian")
def test_a_stand_in_has_no_password_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "apt.conf").write_text('Acquire::http::Proxy "http://user:hunter2@127.0.0.1:9/";\n')
    given = {"PIP_INDEX_URL": "https://user:hunter2@example.invalid/simple", "APT_CONFIG": str(tmp_path / "apt.conf")}
    command = f'source "{SCRIPT}"; machine_settings "{tmp_path}"'
    subprocess.run(["bash", "-c", command], env={**os.environ, **given}, check=True)
    pip = (tmp_path / "etc" / "pip.conf").read_text()
    apt = (tmp_path / "etc" / "apt" / "apt.conf.d" / "99machine").read_text()
    assert "index-url = https://example.invalid/simple" in pip
    assert 'Acquire::http::Proxy "http://127.0.0.1:9/"' in apt
    assert "hunter2" not in pip + apt
