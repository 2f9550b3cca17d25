#!/bin/sh
# Makes the keys and passwords of deploy/compose.yaml and deploy/kubernetes as files. What is there already is kept.
#
#   deploy/make_secrets.sh [FOLDER]        by default deploy/secrets
#
# Run it as root, or afterwards 'sudo chgrp -R 10001 FOLDER': containers read them as members of that group.
set -eu
umask 027

folder=${1:-"$(dirname "$0")/secrets"}
mkdir -p "$folder"
cd "$folder"

# Digits and letters alone: a key that begins with "-" would be taken for an option where one is typed.
random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
once() { [ -e "$1" ] || cat > "$1"; }

random | once qdrant_api_key
random | once qdrant_read_only_key
random | once metrics_key
random | once grafana_admin_password
# A token of the Hub, if there are private or gated models to crawl; empty for none.
printf '' | once hf_token

printf 'service:\n  api_key: "%s"\n  read_only_api_key: "%s"\n' "$(cat qdrant_api_key)" "$(cat qdrant_read_only_key)" \
    > qdrant.yaml

# Who may ask the service. Prometheus has a key of its own; of keys that are only compared the digest is enough.
if ! [ -e api_keys ]; then
    printf '# NAME KEY, or NAME sha256:DIGEST; read again when it changes\n' > api_keys
    printf 'prometheus  sha256:%s\n' "$(tr -d '\n' < metrics_key | sha256sum | cut -d ' ' -f 1)" >> api_keys
fi

chmod 640 -- *
if [ "$(id -u)" = 0 ]; then
    chgrp 10001 . -- *
    chmod 750 .
fi
echo "the secrets are in $folder" >&2
