#!/usr/bin/env bash
# Makes a Ceph cluster of one monitor and one OSD, whose objects lie in memory, and serves S3 from it on port 7480.
#
# S3_CREDENTIALS names a file like ~/.aws/credentials with the key and secret of the one user, S3_BUCKET a bucket that
# is there from the start. /run/ready appears when everything is; what the store held is gone when it stops.
set -euo pipefail

readonly address=127.0.0.1 data=/var/lib/ceph port=7480
# A container that is started again has the files of the cluster before, whose objects are gone.
rm -rf /run/ready /run/ceph /etc/ceph "$data/mon" "$data/osd"
fsid=$(</proc/sys/kernel/random/uuid)
mkdir -p /etc/ceph /run/ceph "$data/mon/ceph-a" "$data/osd/ceph-0"

# One copy of everything, few placement groups, and no words about it: a cluster that is made in seconds.
cat >/etc/ceph/ceph.conf <<CONF
[global]
fsid = $fsid
mon_initial_members = a
mon_host = [v2:$address:3300,v1:$address:6789]
public_addr = $address
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 2
mon_data_avail_crit = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
rgw_dynamic_resharding = false
log_to_file = false
mon_cluster_log_to_file = false
CONF

make_monitor() {
    local keys=/etc/ceph/ceph.client.admin.keyring
    ceph-authtool -C "$keys" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool -C /etc/ceph/mon.keyring --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool /etc/ceph/mon.keyring --import-keyring "$keys"
    monmaptool --create --fsid "$fsid" --addv a "[v2:$address:3300,v1:$address:6789]" /etc/ceph/monmap
    ceph-mon --mkfs --id a --monmap /etc/ceph/monmap --keyring /etc/ceph/mon.keyring
    ceph-mon --id a
    timeout 60 ceph status
}

make_osd() {
    local uuid key id tries
    uuid=$(</proc/sys/kernel/random/uuid)
    key=$(ceph-authtool --gen-print-key)
    id=$(ceph osd new "$uuid" -i - <<<"{\"cephx_secret\": \"$key\"}")
    ceph-authtool -C "$data/osd/ceph-$id/keyring" --name "osd.$id" --add-key "$key"
    ceph-osd --id "$id" --mkfs --osd-uuid "$uuid"
    ceph-osd --id "$id"
    for ((tries = 0; tries < 120; tries++)); do
        [[ $(ceph osd stat) == *"1 up"* ]] && return
        sleep 0.5
    done
    echo "the OSD did not come up in 60 s" >&2
    return 1
}

credential() {
    awk -F ' *= *' -v name="$1" '$1 == name { print $2; exit }' "$S3_CREDENTIALS"
}

# In the background, while the gateway takes the place of this shell.
make_bucket() {
    local url="http://127.0.0.1:$port" user
    until curl --silent --output /dev/null "$url"; do sleep 0.2; done
    user="$(credential aws_access_key_id):$(credential aws_secret_access_key)"
    [[ -z ${S3_BUCKET:-} ]] || curl --silent --fail --aws-sigv4 aws:amz:us-east-1:s3 --config - --request PUT "$url/$S3_BUCKET" <<<"user = \"$user\""
    touch /run/ready
}

make_monitor
make_osd
timeout 120 radosgw-admin user create --uid=tests --display-name=tests \
    --access-key="$(credential aws_access_key_id)" --secret-key="$(credential aws_secret_access_key)" >/dev/null
make_bucket &
exec radosgw -f --name client.admin --keyring=/etc/ceph/ceph.client.admin.keyring --no-mon-config --log-to-stderr=true \
    --rgw-frontends="beast endpoint=0.0.0.0:$port"
